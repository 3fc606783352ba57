"""How long a run will take, from a few updates of components that are thrown away."""

import time
from collections.abc import Callable

from o2o_diffusion.protocols import Generator, Learner, Sampler
from o2o_diffusion.training.loop import Finetuning

ENV_SECONDS = 2e-4
"""Of an environment step, by rule of thumb; evaluation episodes are taken to have 500 of them."""

ROWS = 512
"""Generated to see how long that takes."""


def expected_seconds(loop: Finetuning, learner: Learner, generator: Generator, sampler: Sampler) -> float:
    """Wall seconds of `loop`, which is not touched; the other components are."""
    if not len(loop.replay.offline) or not loop.phases:
        return loop.total_steps * loop.config.updates_per_step * 0.01
    learner.begin_phase(loop.phases[0], loop.replay)
    batch = sampler.sample(loop.replay, learner.batch_size)
    updates = sum(p.updates + p.cadence.updates * p.env_steps // p.cadence.steps for p in loop.phases)
    seconds = updates * _seconds(lambda: learner.update(batch))
    if refreshes := num_refreshes(loop):
        generator.begin_refresh(loop.replay, learner)
        each = _seconds(lambda: generator.update(loop.replay, learner))
        draw = _seconds(lambda: generator.sample(ROWS, replay=loop.replay, agent=learner), repeats=1)
        seconds += refreshes * (generator.num_updates * each + generator.num_samples / ROWS * draw)
    evaluations = 2 + loop.total_steps // loop.config.eval_interval
    return seconds + ENV_SECONDS * (loop.total_steps + 500 * evaluations * loop.config.eval_episodes)


def num_refreshes(loop: Finetuning) -> int:
    """How often the run's generator will be trained."""
    generator = loop.generator
    if not generator.num_samples or loop.total_steps <= generator.first_refresh:
        return 0
    return 1 + (loop.total_steps - 1 - generator.first_refresh) // max(generator.refresh_interval, 1)


def _seconds(action: Callable[[], object], repeats: int = 20) -> float:
    action()
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats
