import pytest
from fakes import finish

from o2o_diffusion.errors import InputError
from o2o_diffusion.studies.folders import finished, rows_of_runs
from o2o_diffusion.studies.rows import read_rows

SETTINGS = """
online_steps: {steps}
seed: {seed}
output: {folder}
task: {{target: a.tasks.Task, dataset: /data/hopper, environment: null}}
learner: {{target: a.learners.sac.SAC, tau: 0.1}}
generator: {{target: a.generators.{name}.X, share: {share}}}
"""


def runs(folder, *cells):
    """Finished runs of (generator, share, online steps, seed)."""
    for number, (name, share, steps, seed) in enumerate(cells):
        own = folder / f"run{number}"
        finish(own, seed, 1.0)
        text = SETTINGS.format(folder=own, name=name, share=share, steps=steps, seed=seed)
        (own / "settings.yaml").write_text(text)
    return [tuple(row["cell"].values()) for row in rows_of_runs(finished(folder), "generator")]


def test_runs_are_named_by_task_learner_and_generator(tmp_path):
    cells = runs(tmp_path, ("none", 0, 10, 0), ("cfdg", 0.5, 10, 0), ("cfdg", 0.5, 10, 1))
    assert cells == [("hopper sac", "none"), ("hopper sac", "cfdg"), ("hopper sac", "cfdg")]


def test_runs_with_other_settings_are_kept_apart(tmp_path):
    cells = runs(tmp_path, ("none", 0, 10, 0), ("cfdg", 0.5, 10, 0), ("cfdg", 0.4, 10, 0), ("none", 0, 20, 0))
    assert cells[:3] == [("hopper sac online_steps=10", name) for name in ("none", "cfdg share=0.5", "cfdg share=0.4")]
    assert cells[3] == ("hopper sac online_steps=20", "none")


def test_a_folder_without_runs_is_an_error_of_one_line(tmp_path):
    with pytest.raises(InputError, match="there is no finished run in"):
        finished(tmp_path)


def test_a_line_that_is_no_row_is_an_error_of_one_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"seed": 0}\n{"se')
    with pytest.raises(InputError, match=r"a.jsonl, line 2: not a row of results"):
        read_rows(tmp_path / "a.jsonl")
