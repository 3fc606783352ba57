import json
from pathlib import Path

import pytest
import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import CONFIGS, available, compose
from o2o_diffusion.training.finetune import GROUPS, Run
from o2o_diffusion.training.loop import Finetuning
from o2o_diffusion.types import Source


def settings(tmp_path: Path, *overrides: str, name: str = "run"):
    return compose(CONFIGS / "finetune.yaml", Finetuning.Config, GROUPS, [*overrides, f"output={tmp_path / name}"])


def flat(state, prefix="") -> dict:
    """Tensors and numbers of a nested state by their path, without times."""
    if isinstance(state, dict):
        parts = [flat(value, f"{prefix}/{key}") for key, value in state.items() if key not in ("seconds", "logger")]
        return {key: value for part in parts for key, value in part.items()}
    if isinstance(state, (list, tuple)):
        return flat(dict(enumerate(state)), prefix)
    return {prefix: state}


def assert_equal(one: dict, other: dict) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, str | None):
            assert value == other[key], key
        else:
            torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {}


STOPS = {"pretrain": 20, "warmup": 55, "early": 70, "middle": 95, "later": 130, "last": 190}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, tiny_run, tiny_cfdg, stop, whole):
    overrides = [*tiny_run, *tiny_cfdg, "learner=famo2o"]
    if not whole:
        run = Run(settings(tmp_path, *overrides, name="whole"))
        assert run.loop.run()
        whole.update(state=run.loop.state_dict(), lines=run.loop.logger.path.read_text())
    stopped = Run(settings(tmp_path, *overrides))
    stopped.settings.save(stopped.folder / "settings.yaml")
    stopped.loop.interrupted = lambda: stopped.loop.ticks >= stop
    assert not stopped.loop.run()
    resumed = Run.resume(str(stopped.folder))
    assert resumed.loop.ticks == stop and resumed.loop.run()
    assert_equal(resumed.loop.state_dict(), whole["state"])
    assert resumed.loop.logger.path.read_text() == whole["lines"]


def test_the_stops_above_lie_where_they_say(tmp_path, tiny_run, tiny_cfdg):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg, "learner=famo2o"))
    seen = {}
    while run.loop.phase < len(run.loop.phases):
        run.loop.tick()
        phase = run.loop.phases[run.loop.phase].name if run.loop.phase < len(run.loop.phases) else "end"
        seen[run.loop.ticks] = "refresh" if run.loop.refresher.left else phase
    assert [seen[tick] for tick in (20, 55)] == ["pretrain", "warmup"]
    assert "refresh" in (seen[95], seen[130], seen[190], seen[70]) and "finetune" in (seen[70], seen[95], seen[190])


def test_generated_rows_enter_and_the_environment_sees_only_its_own_observations(tmp_path, tiny_run, tiny_cfdg):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg))
    last, answered = [], []
    environment, act = run.loop.interaction.environment, run.loop.learner.act
    reset, step = environment.reset, environment.step

    def remember(result):
        last[:] = [result[0]]
        return result

    def watched(observations, *, deterministic=False):
        if not deterministic:
            answered.append(torch.equal(observations[0], torch.from_numpy(last[0])))
        return act(observations, deterministic=deterministic)

    environment.reset = lambda **kwargs: remember(reset(**kwargs))
    environment.step = lambda action: remember(step(action))
    run.loop.learner.act = watched
    assert run.loop.run()
    assert len(answered) == 80 and all(answered)
    assert run.loop.refresher.count == 2 and len(run.loop.replay.pools[Source.GENERATED_ONLINE]) == 40
    assert len(run.loop.replay.online) == 80 and len(run.loop.replay.offline) == 400


@pytest.mark.parametrize(("max_auc", "after_refresh"), [(1, 0.0), (0.1, 0.5)])
def test_offline_rows_are_replaced_once_there_are_generated_ones(
    tmp_path, tiny_run, tiny_generator, max_auc, after_refresh
):
    own = [*tiny_generator("edis"), f"generator.max_auc={max_auc}", "sampler.ramp=0", "online_steps=40"]
    run = Run(settings(tmp_path, *tiny_run, *own))
    asked, begin_phase = [], run.loop.sampler.begin_phase
    run.loop.sampler.begin_phase = lambda shares: asked.append(shares.offline) or begin_phase(shares)
    assert run.loop.run() and run.loop.refresher.count == 1
    assert asked == [1.0, 1.0, 0.5, after_refresh]  # pretraining, warm-up, fine-tuning, after the refresh


def test_a_refresh_that_a_classifier_tells_from_real_rows_is_not_used(tmp_path, tiny_run, tiny_cfdg, capsys):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg, "generator.max_auc=0.1"))
    assert run.execute() == 0
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["refreshes"] == summary["refused_refreshes"] == 2 and summary["generated_rows"] == 0
    assert all(len(run.loop.replay.pools[source]) == 0 for source in list(Source)[2:])
    assert "refresh 1 is not used: a classifier tells its rows from real ones with AUC" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in lines if line["kind"] == "refresh"] == [0, 0]


GENERATORS = [name for name in available("generator") if name != "cfdg-paper"]
ONE_BY_ONE = [(learner, "cfdg") for learner in available("learner")] + [("iql", name) for name in GENERATORS]
ALL = [
    pytest.param(learner, name, marks=[] if (learner, name) in ONE_BY_ONE else pytest.mark.slow)
    for learner in available("learner")
    for name in GENERATORS
]


@pytest.mark.parametrize(("learner", "generator"), ALL)
def test_every_learner_runs_with_every_generator(tmp_path, tiny_run, tiny_generator, tiny_learner, learner, generator):
    run = Run(settings(tmp_path, *tiny_run, *tiny_generator(generator), *tiny_learner(learner)))
    assert run.execute() == 0
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["env_steps"] == 80 and summary["refreshes"] == (0 if generator == "none" else 2)
    assert (run.folder / "curve.png").stat().st_size > 5_000
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"evaluation", "finetune"} <= {line["kind"] for line in lines}
    assert [line["env_steps"] for line in lines if line["kind"] == "evaluation"][-1] == 80


def test_a_pretrained_learner_is_taken_over(tmp_path, tiny_run):
    overrides = [*tiny_run, "generator=none", "learner=iql"]
    first = Run(settings(tmp_path, *overrides, "online_steps=0", name="first"))
    assert first.execute() == 0
    second = Run(settings(tmp_path, *overrides, f"pretrained={first.folder}"))
    assert_equal(second.loop.learner.state_dict(), first.loop.learner.state_dict())
    assert second.loop.run() and second.loop.updates == 40 + 60
    with pytest.raises(InputError, match="expected this run's settings"):
        Run(settings(tmp_path, *overrides, f"pretrained={first.folder}", "learner.tau=0.1", name="third"))


def test_the_score_at_the_switch_is_that_before_the_switch(tmp_path, tiny_run):
    overrides = [*tiny_run, "generator=none", "learner=pex"]  # whose online policy begins with random weights
    first = Run(settings(tmp_path, *overrides, "online_steps=0", name="first"))
    assert first.execute() == 0
    second = Run(settings(tmp_path, *overrides, f"pretrained={first.folder}"))
    assert second.loop.run()
    before, after = first.loop.evaluations[-1], second.loop.evaluations[0]
    assert (after["env_steps"], after["score"]) == (0, before["score"])
    assert [e["env_steps"] for e in second.loop.evaluations].count(0) == 1


def test_an_output_that_holds_a_run_is_not_written_over(tmp_path, tiny_run):
    run = Run(settings(tmp_path, *tiny_run, "generator=none"))
    run.settings.save(run.folder / "settings.yaml")
    with pytest.raises(InputError, match="already holds a run"):
        Run(settings(tmp_path, *tiny_run, "generator=none"))
