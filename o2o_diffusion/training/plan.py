"""Expected duration of a run, measured on throwaway components."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from o2o_diffusion.distributed import shard
from o2o_diffusion.protocols import Generator, Learner, Sampler
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Source, Transitions

ENV_SECONDS = 2e-4
"""Assumed seconds per environment step; evaluation episodes are assumed to have 500 steps."""

ROWS = 512
"""Number of rows sampled to time the generator."""


def expected_seconds(loop: Loop, learner: Learner, generator: Generator, sampler: Sampler) -> float:
    """Expected wall-clock seconds of `loop` on all its processes; times the updates of each phase separately.

    Only reads `loop`; trains the other components a little. All processes must call it.
    """
    replay = trial_replay(loop.replay)
    seconds = 0.0
    for phase in loop.phases:
        learner.begin_phase(phase, replay)
        if count := num_updates(phase):
            seconds += count * _update_seconds(phase, replay, learner, sampler)
    if refreshes := num_refreshes(loop):
        refresh = generator.next_refresh(loop.replay)
        generator.begin_refresh(replay, learner)
        update = _seconds(lambda: generator.update(replay, learner))
        options = {"source": Source.GENERATED_ONLINE, "replay": replay, "agent": learner}
        draw = _seconds(lambda: generator.sample(ROWS, **options), repeats=1)
        seconds += refreshes * (refresh.updates * update + refresh.rows / ROWS * draw)
    evaluations = 2 + loop.total_steps // loop.config.eval_interval
    return seconds + ENV_SECONDS * (loop.total_steps + 500 * evaluations * loop.config.eval_episodes)


def num_updates(phase: Phase) -> int:
    """Number of learner updates in `phase`."""
    return phase.updates + (int(phase.cadence.updates * phase.env_steps) if phase.learns else 0)


def num_refreshes(loop: Loop) -> int:
    """Number of generator refreshes in the run."""
    refresh = loop.refresher.generator.next_refresh(loop.replay)
    has_learning = any(num_updates(phase) for phase in loop.phases)
    if not (refresh.updates or refresh.rows) or not has_learning or 0 < loop.total_steps <= refresh.first:
        return 0
    if not loop.total_steps:
        return int(refresh.first == 0)
    return 1 + (loop.total_steps - 1 - refresh.first) // refresh.interval if refresh.interval else 1


def show_phases(phases: tuple[Phase, ...]) -> str:
    """Updates and environment steps of each phase, on one line."""
    parts = []
    for phase in phases:
        counts = [f"{phase.updates:,} updates"] if phase.updates else []
        counts += [f"{phase.env_steps:,} steps"] if phase.env_steps else []
        parts.append(f"{' and '.join(counts)} ({phase.name})")
    return " + ".join(parts)


def show_pools(replay: Replay) -> str:
    """Number of rows in each pool, on one line."""
    pools: Mapping[Source, Any] = replay.pools
    return ", ".join(f"{len(pool):,} {source.name.lower()}" for source, pool in pools.items() if len(pool))


def show_minutes(seconds: float) -> str:
    """Format `seconds` as minutes."""
    return f"about {seconds / 60:.0f} minutes" if seconds > 90 else "about a minute"


def _update_seconds(phase: Phase, replay: Replay, learner: Learner, sampler: Sampler) -> float:
    """Seconds per update in `phase`, on real rows only."""
    draw = shard(sampler.sample(replay, phase.shares, phase.batch_size))
    batch = replay.scaled(replay.gather(draw))
    return _seconds(lambda: learner.update(batch))


def trial_replay(replay: Replay) -> Replay:
    """`replay`, or one of random rows if the run starts without data, for updates of throwaway learners."""
    if len(replay.offline):
        return replay
    trial, spec, generator = Replay(replay.spec, {Source.ONLINE: ROWS}), replay.spec, torch.Generator().manual_seed(0)
    states = torch.randn(2, ROWS, spec.observation_dim, generator=generator)
    actions = 2 * torch.rand(ROWS, spec.action_dim, generator=generator) - 1
    zeros = torch.zeros(ROWS)
    trial.online.append(Transitions.create(states[0], actions, zeros, states[1], zeros))
    return trial


def _seconds(action: Callable[[], object], repeats: int = 20) -> float:
    action()
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats
