import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build, names, raw_batch

from o2o_diffusion.environments.collector import Collector
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Learner
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Cadence, Phase
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.state import Stateful
from o2o_diffusion.training.checkpoint import MANIFEST, SCHEMA
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import CHECKPOINTS, GROUPS, SUMMARY
from o2o_diffusion.training.logger import Logger
from o2o_diffusion.training.loop import Action, Loop
from o2o_diffusion.training.plan import expected_seconds, num_refreshes
from o2o_diffusion.training.session import Session
from o2o_diffusion.types import EnvironmentSpec, RewardTransform, Source, TransitionSpec


def settings(tmp_path: Path, *overrides: str, name: str = "run"):
    return compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*overrides, f"output={tmp_path / name}"])


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


STOPS = {"pretrain": 20, "warmup": 55, "early": 70, "refresh": 92, "between": 130, "second refresh": 165, "last": 190}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, tiny_run, tiny_cfdg, stop, whole):
    overrides = [*tiny_run, *tiny_cfdg, "learner=famo2o"]
    if not whole:
        run = Run(settings(tmp_path, *overrides, name="whole"))
        assert run.loop.run()
        whole.update(state=run.loop.state_dict(), lines=run.loop.logger.path.read_text())
    stopped = Run(settings(tmp_path, *overrides))
    stopped.begin()
    stopped.session.interrupted = lambda: stopped.loop.ticks >= stop
    assert not stopped.loop.run()
    resumed = Run.resume(stopped.folder)
    assert resumed.loop.ticks == stop and resumed.loop.run()
    assert_equal(resumed.loop.state_dict(), whole["state"])
    assert resumed.loop.logger.path.read_text() == whole["lines"]


def test_the_stops_above_lie_where_they_say(tmp_path, tiny_run, tiny_cfdg):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg, "learner=famo2o"))
    seen = {}
    while run.loop.phase < len(run.loop.phases):
        run.loop.tick()
        seen[run.loop.ticks] = "refresh" if run.loop.refresher.updates_due else run.loop.current.name
    places = ["pretrain", "warmup", "finetune", "refresh", "finetune", "refresh", "finetune"]
    assert [seen[stop] for stop in STOPS.values()] == places and run.loop.refresher.count == 2


def test_generated_rows_enter_and_the_environment_sees_only_its_own_observations(tmp_path, tiny_run, tiny_cfdg):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg))
    last, answered = [], []
    environment, act = run.loop.collector.environment, run.loop.learner.act
    assert environment is not None
    reset, step = environment.reset, environment.step

    def remember(result):
        last[:] = [result[0]]
        return result

    def watched(observations, *, deterministic=False, rng=None):
        if not deterministic:
            assert rng is run.loop.collector.rng
            answered.append(torch.equal(observations[0], torch.from_numpy(last[0])))
        return act(observations, deterministic=deterministic, rng=rng)

    environment.reset = lambda **kwargs: remember(reset(**kwargs))
    environment.step = lambda action: remember(step(action))
    run.loop.learner.act = watched
    assert run.loop.run()
    assert len(answered) == 80 and all(answered)
    assert run.loop.refresher.count == 2 and len(run.loop.replay.pools[Source.GENERATED_ONLINE]) == 40
    assert len(run.loop.replay.online) == 80 and len(run.loop.replay.offline) == 400


STRICT = ["generator.gate.rows=50", "generator.gate.outside_range=0", "generator.gate.at_limits=0"]
"""A gate that refuses the rows of a generator that has hardly been trained."""


@pytest.mark.parametrize(("gate", "after_refresh"), [([], 0.0), (STRICT, 0.5)])
def test_offline_rows_are_replaced_once_there_are_generated_ones(
    tmp_path, tiny_run, tiny_generator, gate, after_refresh
):
    own = [*tiny_generator("edis"), *gate, "sampler.ramp=0", "online_steps=40"]
    run = Run(settings(tmp_path, *tiny_run, *own))
    offline = {}
    while run.loop.phase < len(run.loop.phases):
        run.loop.tick()
        offline[run.loop.current.name, run.loop.refresher.count] = run.loop.shares().offline
    expected = {("pretrain", 0): 1.0, ("warmup", 0): 1.0, ("finetune", 0): 0.5, ("finetune", 1): after_refresh}
    assert expected.items() <= offline.items() and run.loop.refresher.count == 1


def test_a_refresh_that_the_gate_refuses_is_not_used(tmp_path, tiny_run, tiny_cfdg, capsys):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg, *STRICT))
    assert run.execute() == 0
    summary = json.loads((run.folder / SUMMARY).read_text())
    assert summary["refreshes"] == summary["refused_refreshes"] == 2 and summary["generated_rows"] == 0
    assert all(len(run.loop.replay.pools[source]) == 0 for source in list(Source)[2:])
    assert re.search(r"warning: refresh 1 is refused: \d+% of .* limit 0% more\).*; going on", capsys.readouterr().err)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    refreshes = [line for line in lines if line["kind"] == "refresh"]
    assert [line["rows"] for line in refreshes] == [0, 0] and refreshes[0]["verdict"].startswith("refused: ")
    assert max(refreshes[0]["online_outside_range"], refreshes[0]["online_at_limits"]) > 0


GENERATORS = [path.stem for path in names("generator") if path.stem != "cfdg-paper"]
LEARNERS = [path.stem for path in names("learner")]
ONE_BY_ONE = [(learner, "cfdg") for learner in LEARNERS] + [("iql", name) for name in GENERATORS]
ALL = [
    pytest.param(learner, name, marks=[] if (learner, name) in ONE_BY_ONE else pytest.mark.slow)
    for learner in LEARNERS
    for name in GENERATORS
]


@pytest.mark.parametrize(("learner", "generator"), ALL)
def test_every_learner_runs_with_every_generator(tmp_path, short_run, tiny_generator, tiny_learner, learner, generator):
    run = Run(settings(tmp_path, *short_run, *tiny_generator(generator), *tiny_learner(learner), "sampler.ramp=50"))
    assert run.execute() == 0
    summary = json.loads((run.folder / SUMMARY).read_text())
    refresh = run.loop.refresher.generator.next_refresh(run.loop.replay)
    assert summary["env_steps"] == 80 and summary["refreshes"] == num_refreshes(run.loop)
    assert (summary["refreshes"] > 0) == (refresh.updates + refresh.rows > 0)
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
    run.begin()
    with pytest.raises(InputError, match="already holds a run"):
        Run(settings(tmp_path, *tiny_run, "generator=none"))


def test_a_run_of_an_older_version_is_refused_in_one_line(tmp_path, tiny_run):
    overrides = [*tiny_run, "generator=none", "learner=iql", "online_steps=0"]
    run = Run(settings(tmp_path, *overrides, name="old"))
    assert run.execute() == 0
    manifest = max((run.folder / CHECKPOINTS).glob("step_*")) / MANIFEST
    content = json.loads(manifest.read_text())
    assert content.pop("digest") and content["schema"] == SCHEMA == 3 and content["version"]
    for version in ("0.1", "0.9"):
        manifest.write_text(json.dumps(content | {"schema": 1, "version": version}))
        refused = rf"checkpoint .* was written by o2o_diffusion {version}, which .* can't restore"
        with pytest.raises(InputError, match=refused) as error:
            Run.resume(run.folder)
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match=refused):
            Run(settings(tmp_path, *overrides, "online_steps=80", f"pretrained={run.folder}"))
    del content["schema"], content["version"]  # as 0.1 wrote it
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"was written by o2o_diffusion 0\.1, which"):
        Run.resume(run.folder)


def test_a_refresh_may_come_before_the_first_update(tmp_path, tiny_run, tiny_cfdg):
    run = Run(settings(tmp_path, *tiny_run, *tiny_cfdg, "generator.first_refresh=0", "sampler.ramp=0"))
    generated, update = [], run.loop.learner.update

    def watched(batch):
        assert run.loop.refresher.count >= 1
        generated.append((run.loop.current.name, int(batch.is_generated.sum())))
        return update(batch)

    run.loop.learner.update = watched
    assert run.loop.run()
    in_pretraining = [count for name, count in generated if name == "pretrain"]
    assert len(in_pretraining) == 40 and sum(in_pretraining) > 40
    assert run.loop.refresher.count == 1 + (80 - 1) // 30  # at steps 0, 30, 60


def test_a_generator_does_not_change_the_exploration(tmp_path, tiny_run, tiny_generator):
    """EDIS draws the policy's actions in its refreshes, with numbers of its own."""
    runs = {}
    for name in ("none", "edis"):
        run = Run(settings(tmp_path, *tiny_run, *tiny_generator(name), "learner=iql", name=name))
        assert run.loop.run()
        runs[name] = run.loop
    assert runs["edis"].refresher.count == 2
    online = [runs[name].replay.online.all() for name in runs]
    assert torch.equal(online[0].actions[:20], online[1].actions[:20])  # of the warm-up
    assert torch.equal(online[0].observations[:21], online[1].observations[:21])
    assert not torch.equal(online[0].actions, online[1].actions)  # learned from other batches
    states = [runs[name].collector.rng.state_dict()["generator"] for name in runs]
    assert torch.equal(*states)  # as many numbers were drawn


def test_wsrl_starts_from_another_runs_policy_without_pretraining(tmp_path, tiny_run, tiny_learner):
    overrides = [*tiny_run, "generator=none", *tiny_learner("wsrl")]
    first = Run(settings(tmp_path, *overrides, "online_steps=0", name="first"))
    assert first.execute() == 0
    second = Run(settings(tmp_path, *overrides, f"pretrained={first.folder}", "pretrain_updates=0"))
    assert [phase.name for phase in second.loop.phases] == ["warmup", "finetune"]
    assert second.execute() == 0 and second.loop.env_steps == 80
    with pytest.raises(InputError, match="WSRL fine-tunes a pretrained policy"):
        Run(settings(tmp_path, *overrides, "pretrain_updates=0", name="third"))


SPEC = TransitionSpec(3, 1)


CLOCK = [0.0]


class Declared(Stateful):
    """A learner that only declares phases: `seconds` is how long an update of each takes, `done` which were run."""

    def __init__(self, *phases: Phase, seconds: dict[str, float] | None = None):
        self.declared, self.seconds, self.done = phases, seconds or {}, []

    def phases(self, budget: Budget):
        return self.declared

    def begin_phase(self, phase, replay):
        self.phase = phase

    def update(self, batch):
        assert batch.discounts.isfinite().all() and len(batch) == self.phase.batch_size
        self.done.append(self.phase.name)
        CLOCK[0] += self.seconds.get(self.phase.name, 0.0)
        return {}

    def act(self, observations, *, deterministic=False, rng=None):
        return torch.zeros(len(observations), 1)

    def values(self, observations, actions):
        return torch.zeros(len(observations))

    def log_prob(self, observations, actions):
        return torch.zeros(len(observations))

    def begin_episode(self): ...

    def end_episode(self, episode): ...


def loop_of(folder: Path, learner: Learner, **config) -> Loop:
    """A loop on 100 random offline rows and Pendulum, without a generator and without evaluations."""
    replay, session = Replay(SPEC, {Source.OFFLINE: 100, Source.ONLINE: 100}), Session(1, "highest")
    replay.offline.append(raw_batch(100, SPEC))
    environment = make_environment(EnvironmentSpec("Pendulum-v1"))
    return Loop(
        Loop.Config(**config),
        session=session,
        learner=learner,
        make_learner=lambda: learner,
        generator=build("generator", "none", SPEC),
        sampler=build("sampler", "mixture", SPEC),
        replay=replay,
        collector=Collector(environment, SPEC, seed=0, exploration_seed=1),
        evaluator=None,
        logger=Logger(Logger.Config(progress=False), folder, session.accelerator, {}),
        folder=folder,
    )


PHASES = (
    Phase("pretrain", 9, batch_size=4),
    Phase("finetune", env_steps=10, cadence=Cadence(2), batch_size=4),
    Phase("polish", 7, batch_size=6),
)


@pytest.mark.parametrize("pretrained", [None, "elsewhere"])
def test_only_the_phases_before_the_first_step_are_another_runs(tmp_path, pretrained):
    learner = Declared(*PHASES)
    loop = loop_of(tmp_path, learner, pretrained=pretrained)
    assert loop.run() and loop.env_steps == 10
    expected = {"pretrain": 9, "finetune": 20, "polish": 7}
    if pretrained:
        del expected["pretrain"]
    assert {name: learner.done.count(name) for name in dict.fromkeys(learner.done)} == expected


def test_what_is_due_does_not_change_the_loop(tmp_path):
    loop, actions = loop_of(tmp_path, Declared(*PHASES)), []
    while loop.phase < len(loop.phases):
        action = loop.due()
        before = (loop.ticks, loop.phase, loop.updates_due, loop.env_steps)
        assert loop.due() is action and before == (loop.ticks, loop.phase, loop.updates_due, loop.env_steps)
        loop.do(action)
        actions.append(action)
    assert actions[:2] == [Action.BEGIN_PHASE, Action.UPDATE] and len(actions) == loop.ticks
    assert actions.count(Action.UPDATE) == 9 + 20 + 7 and actions.count(Action.COLLECT) == 10
    assert actions.count(Action.BEGIN_PHASE) == 4 and Action.BEGIN_REFRESH not in actions


def test_the_expected_time_is_that_of_each_phase(tmp_path, monkeypatch):
    """Updates of fine-tuning take twice as long as those before, by a clock that only updates move."""
    monkeypatch.setattr("time.perf_counter", lambda: CLOCK[0])
    phases = (Phase("pretrain", 2_000), Phase("finetune", env_steps=2_000, cadence=Cadence(10)))
    seconds = {"pretrain": 0.002, "finetune": 0.004}
    loop = loop_of(tmp_path, Declared(*phases, seconds=seconds), eval_interval=10_000, eval_episodes=1)
    parts = build("generator", "none", SPEC), build("sampler", "mixture", SPEC)
    found = expected_seconds(loop, Declared(*phases, seconds=seconds), *parts)
    assert 1 <= found / (2_000 * 0.002 + 20_000 * 0.004) < 1.5
    assert loop.ticks == loop.updates == 0 and loop.learner.done == []


def test_each_process_augments_and_scales_its_own_rows_of_one_draw(tmp_path, monkeypatch):
    loop, seen = loop_of(tmp_path, Declared(*PHASES)), []
    loop.replay.transform = RewardTransform(scale=2.0, bias=1.0)
    loop.tick()  # the first phase begins

    def augment(batch, replay, agent):
        seen.append(batch)
        return batch.where(observations=batch.observations + 50)

    monkeypatch.setattr(loop.refresher, "augment", augment)
    state, batches = loop.sampler.state_dict(), []
    for processes, rank in ((1, 0), (2, 0), (2, 1)):
        loop.sampler.load_state_dict(state)
        monkeypatch.setattr("o2o_diffusion.distributed.num_processes", lambda number=processes: number)
        monkeypatch.setattr("o2o_diffusion.distributed.rank", lambda number=rank: number)
        batches.append(loop.draw()[0])
    assert [len(batch) for batch in seen] == [4, 2, 2]  # augmented after sharding
    for part, batch in ((slice(None), batches[0]), (slice(0, None, 2), batches[1]), (slice(1, None, 2), batches[2])):
        real = loop.replay.offline[batches[0].rows[part]]
        assert torch.equal(batch.observations, real.observations + 50)
        torch.testing.assert_close(batch.rewards, 2 * real.rewards + 1)
        torch.testing.assert_close(batch.discounts, 0.99 * (1 - real.terminations))


def test_the_last_evaluation_is_at_the_last_step(tmp_path, tiny_run):
    own = ["generator=none", "learner=iql", "online_steps=30", "eval_interval=20", "learner.batch_size=8"]
    loop = Run(settings(tmp_path, *tiny_run, *own)).loop
    assert loop.run() and [evaluation["env_steps"] for evaluation in loop.evaluations] == [0, 20, 30]


def test_a_fresh_phase_has_a_new_learner_and_a_random_one_does_not_ask_it(tmp_path):
    phases = Phase("warmup", env_steps=5, random_actions=True), Phase("finetune", env_steps=5, fresh=True)
    first, second = Declared(*phases), Declared(*phases)
    loop = loop_of(tmp_path, first)
    loop.make_learner = lambda: second
    assert loop.run() and loop.learner is second and second.phase is phases[1] and first.phase is phases[0]
    taken = loop.replay.online.all().actions[:, 0]
    assert (taken[:5] != 0).all() and (taken[5:] == 0).all()  # `Declared` acts with 0


def test_a_pretrained_learner_is_for_its_own_data(tmp_path, tiny_run, pendulum_table):
    overrides = [*tiny_run, "generator=none", "learner=iql"]
    first = Run(settings(tmp_path, *overrides, "online_steps=0", name="first"))
    assert first.execute() == 0
    table = dict(np.load(pendulum_table))
    np.savez(tmp_path / "other.npz", **table | {"rewards": table["rewards"] + 1})
    other = [f"task.dataset={tmp_path / 'other.npz'}", f"pretrained={first.folder}"]
    with pytest.raises(InputError, match="was made with another dataset"):
        Run(settings(tmp_path, *overrides, *other))
