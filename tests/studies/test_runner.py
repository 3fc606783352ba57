import json
from pathlib import Path

import pytest

from o2o_diffusion.errors import InputError
from o2o_diffusion.studies.rows import read_rows
from o2o_diffusion.studies.runner import Places, Runner, unfinished
from o2o_diffusion.studies.study import Study, key_of
from o2o_diffusion.training.report import NUMBERS
from o2o_diffusion.training.session import processor

STUDY = """
axes:
  task: {short: [online_steps=2000], long: [online_steps=3000]}
  variant:
    none: [generator=none]
    cfdg: [&cfdg [generator=cfdg, generator.share=0.5]]
    unguided: [*cfdg, generator.guidance=0]
compare: variant
baseline: none
settings: [task=halfcheetah-scratch]
seeds: 2
"""


class FakeRun:
    """Finishes at once with the score 1, or fails; the last argument is the folder."""

    def __init__(self, arguments: list[str], log: Path, code: int = 0):
        self.code, self.folder = code, Path(arguments[-1].partition("=")[2])
        seed = int(str(self.folder).split("_")[-3])
        if code == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "metrics.jsonl").write_text('{"kind": "evaluation", "env_steps": 0, "score": 1.0}\n')
            summary = {"numbers": NUMBERS, "processor": processor(), "area_under_curve": 1.0, "seed": seed}
            (self.folder / "summary.json").write_text(json.dumps(summary))

    def poll(self) -> int:
        return self.code

    wait = poll

    def terminate(self) -> None:
        self.code = 130


@pytest.fixture
def study(tmp_path) -> Study:
    (tmp_path / "toy.yaml").write_text(STUDY)
    return Study.load(str(tmp_path / "toy.yaml"))


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(None, tmp_path / "runs", tmp_path / "toy.jsonl")


def test_seed_0_of_all_cells_comes_before_seed_1(study):
    assert [cell.seed for cell in study.cells()] == [0] * 6 + [1] * 6
    assert [cell.name for cell in study.cells(1)][:4] == [
        "short_none_0",
        "short_cfdg_0",
        "short_unguided_0",
        "long_none_0",
    ]


def test_lists_in_lists_are_flattened(study):
    assert list(study.cells(1))[2].settings[2:] == (
        "generator=cfdg",
        "generator.share=0.5",
        "generator.guidance=0",
        "seed=0",
    )


def test_equal_settings_have_equal_keys_and_others_have_others():
    settings = ("task=halfcheetah-scratch", "learner=sac")
    assert key_of((*settings, "logger.progress=false", "output=x")) == key_of(settings)
    assert key_of((*settings, "learner.tau=0.005")) == key_of(settings)  # the default
    assert key_of((*settings, "seed=1")) == key_of(settings)
    others = "learner.tau=0.01", "learner=td3", "online_steps=2000"
    assert len({key_of((*settings, other)) for other in ("seed=0", *others)}) == 4


def test_finished_cells_are_not_run_again_though_their_folders_are_gone(study, places):
    started = []

    def start(arguments, log):
        started.append(arguments)
        return FakeRun(arguments, log)

    assert Runner(study, places, 2, start).run(unfinished(study, places.rows, 1)) == []
    assert len(started) == len(read_rows(places.rows)) == 6
    assert unfinished(study, places.rows, 1) == []
    assert [cell.seed for cell in unfinished(study, places.rows)] == [1] * 6


def test_a_failed_cell_is_named_and_the_others_go_on(study, places):
    def start(arguments, log):
        return FakeRun(arguments, log, code=2 if "generator.guidance=0" in arguments else 0)

    failed = Runner(study, places, 2, start).run(unfinished(study, places.rows, 1))
    assert [cell.name for cell in failed] == ["short_unguided_0", "long_unguided_0"]
    assert len(read_rows(places.rows)) == 4


def test_a_stopped_cell_is_continued_and_a_run_without_a_checkpoint_started_anew(study, places):
    begun, fresh = list(study.cells(1))[:2]
    (places.folder(begun) / "checkpoints" / "step_10").mkdir(parents=True)
    (places.folder(fresh) / "rest").mkdir(parents=True)
    started = []

    def start(arguments, log):
        started.append(arguments)
        return FakeRun(arguments, log)

    Runner(study, places, 1, start).run([begun, fresh])
    assert started[0] == [f"--resume={places.folder(begun)}"]
    assert started[1][-1] == f"output={places.folder(fresh)}"
    assert not (places.folder(fresh) / "rest").exists()


def test_an_unknown_baseline_is_an_error_of_one_line(tmp_path):
    (tmp_path / "toy.yaml").write_text(STUDY.replace("baseline: none", "baseline: nona"))
    with pytest.raises(InputError, match="baseline 'nona' is no value of axis 'variant'; did you mean 'none'"):
        Study.load(str(tmp_path / "toy.yaml"))
