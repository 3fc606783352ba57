"""The oracles and controls of benchmarks/oracles.py against what their names promise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import LinearPolicy, make_replay, play

from benchmarks.oracles import Copier, Nonsense, Relabel, RelabelOffline, Resample, Rollout
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.errors import InputError
from o2o_diffusion.quality.dynamics import Simulator
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import EnvironmentSpec, Source, Transitions, TransitionSpec

FILES = sorted((Path(__file__).parents[1] / "benchmarks" / "generator").glob("*.yaml"))
DATA, HEAVY = EnvironmentSpec("Swimmer-v5"), EnvironmentSpec("Swimmer-v5", physics={"mass": 3.0})
SPEC = TransitionSpec(8, 2, environment=HEAVY, data_environment=DATA)


@pytest.fixture(scope="module")
def replay() -> Replay:
    """100 offline rows of a swimmer and 60 online rows of a heavier one."""
    replay = Replay(SPEC, {Source.OFFLINE: 100, Source.ONLINE: 60})
    replay.offline.append(play(make_environment(DATA), 100))
    replay.online.append(play(make_environment(HEAVY), 60))
    return replay


def rows(kind: type, replay: Replay, source: Source = Source.GENERATED_ONLINE, **settings: Any) -> Transitions:
    oracle = kind(kind.Config(**settings), replay.spec, seed=0)
    made = oracle.sample(50, source=source, replay=replay, agent=LinearPolicy())
    assert (made.sources == int(source)).all() and len(made) == 50 and (made.actions.abs() <= 1).all()
    return made


def obeys(batch: Transitions, spec: EnvironmentSpec) -> bool:
    true = Simulator(make_environment(spec))(batch)
    return all(
        torch.allclose(getattr(batch, name), getattr(true, name), atol=1e-4)
        for name in ("next_observations", "rewards")
    )


def found(part: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether every row of `part` is a row of `whole`."""
    return bool((part[:, None] == whole).all(-1).any(1).all())


def test_a_rollout_is_the_policy_in_the_world_of_the_label(replay):
    online, offline = rows(Rollout, replay), rows(Rollout, replay, Source.GENERATED_OFFLINE)
    assert obeys(online, HEAVY) and not obeys(online, DATA) and obeys(offline, DATA)
    assert torch.equal(online.observations[1:], online.next_observations[:-1])  # one episode


def test_relabeled_rows_are_real_states_with_the_policys_actions(replay):
    online, offline = rows(Relabel, replay), rows(Relabel, replay, Source.GENERATED_OFFLINE)
    assert obeys(online, HEAVY) and obeys(offline, DATA)
    real = Transitions.cat([replay.offline.all(), replay.online.all()])
    assert found(online.observations, real.observations) and not found(online.actions, real.actions)


def test_relabeled_offline_rows_are_offline_pairs_in_the_online_world(replay):
    made, pairs = rows(RelabelOffline, replay), ("observations", "actions")
    joined = [torch.cat([getattr(batch, name) for name in pairs], 1) for batch in (made, replay.offline.all())]
    assert found(*joined) and obeys(made, HEAVY) and not obeys(made, DATA)


def test_controls_keep_break_or_repeat_real_rows(replay):
    real = SPEC.flatten(replay.online.all())
    assert found(SPEC.flatten(rows(Resample, replay)), real)
    nonsense = rows(Nonsense, replay)
    assert found(nonsense.observations, replay.online.all().observations) and not found(SPEC.flatten(nonsense), real)
    copies = SPEC.flatten(rows(Copier, replay))
    deviations = (copies[:, None] - real).square().mean(-1).min(1).indices
    moved = copies - real[deviations]
    free = [*range(8), *range(11, 19)]  # without actions, which are clipped, and reward
    assert moved[:, free].div(real[:, free].std(0)).std() == pytest.approx(0.03, rel=0.1)
    assert moved[:, -1].abs().max() == 0


def test_a_restored_oracle_makes_the_same_rows(replay):
    first, second = (Rollout(Rollout.Config(), SPEC, seed=seed) for seed in range(2))
    second.load_state_dict(first.state_dict())
    options: dict[str, Any] = {"source": Source.GENERATED_ONLINE, "replay": replay, "agent": LinearPolicy()}
    assert torch.equal(*(oracle.sample(5, **options).next_observations for oracle in (first, second)))


def test_an_environment_whose_state_is_not_observed_is_one_line():
    spec = EnvironmentSpec("Reacher-v5")
    replay = make_replay(TransitionSpec(10, 2, environment=spec, data_environment=spec))
    with pytest.raises(InputError, match=r"generator Relabel: the observation holds .* \(Reacher-v5\)"):
        rows(Relabel, replay)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_runs_through_the_loop(file, tmp_path, short_run, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    task = ["task=invertedpendulum-mixed", "task.recording.num_steps=100", "task.physics.mass=2", *short_run[2:]]
    sizes = ["generator.num_samples=50", "generator.first_refresh=30", "generator.refresh_interval=20"]
    small = ["learner=sac", "learner.hidden=[16]", "learner.batch_size=32", "sampler.ramp=0"]
    settings = [
        "modules=benchmarks",
        f"generator={file}",
        *task,
        *sizes,
        *small,
        "learner.random_steps=10",
        f"output={tmp_path / 'run'}",
    ]
    run = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, settings))
    assert run.execute() == 0
    assert run.loop.refresher.count == 3 and run.loop.refresher.refused == 0
    assert len(run.loop.replay.pools[Source.GENERATED_ONLINE]) == 50
