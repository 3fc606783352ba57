"""Stacked learners equal single ones; every file in configs/learner."""

import pytest
import torch
from builders import SPEC, build, leaves, make_replay, names

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.stacking import Stack, StackedRng
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Budget

SEEDS = (3, 7)
MAX_DIFFERENCE = 1e-3
"""Relative to the change of a parameter since its start."""


def numbers(learner):
    """Parameters, moments and counts of a learner as it would be saved; not the bytes of a random stream."""
    state = leaves(learner.state_dict()).items()
    return {name: torch.as_tensor(x, dtype=torch.float64) for name, x in state if is_number(name, x)}


def is_number(name, value):
    return isinstance(value, (int, float, torch.Tensor)) and not name.endswith("generator")


def train(singles, stacked, updates):
    """Train both, `updates` in all phases together, on the same batches; their last metrics."""
    replay, results = make_replay(centers=(3.0, 3.0)), []
    samplers = [Mixture(Mixture.Config(ramp=0), SPEC, seed=seed) for seed in SEEDS]
    phases = [phase for phase in singles[0].phases(Budget(pretrain_updates=10, online_steps=10_000)) if phase.learns]
    for phase in phases:
        for learner in (*singles, *stacked):
            learner.begin_phase(phase, replay)
        stack = Stack(stacked)
        for _ in range(updates // len(phases)):
            draws = [sampler.sample(replay, phase.shares, phase.batch_size) for sampler in samplers]
            batches = [replay.scaled(replay.gather(draw)) for draw in draws]
            alone = [learner.update(batch) for learner, batch in zip(singles, batches, strict=True)]
            results = [stack.update(batches), alone]
    return results


@pytest.mark.parametrize("updates", [40, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", names("learner"), ids=lambda path: path.stem)
def test_stacked_learners_equal_single_ones(path, updates):
    singles, stacked = ([build("learner", path, seed=seed) for seed in SEEDS] for _ in range(2))
    starts = [numbers(learner) for learner in singles]
    together, alone = train(singles, stacked, updates)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)  # the metrics of each
    for start, single, learner in zip(starts, singles, stacked, strict=True):
        found, expected = numbers(learner), numbers(single)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            change = (value - start[name]).norm()
            assert (found[name] - value).norm() <= MAX_DIFFERENCE * change, name
        assert torch.equal(learner.rng.normal(3), single.rng.normal(3))


def test_draws_are_those_of_each_seed():
    stacked = StackedRng([ShardedRng(seed) for seed in SEEDS])
    for draw in (lambda rng, *k: rng.normal(*k, 5, 2), lambda rng, *k: rng.integers(9, *k, 5)):
        alone = [ShardedRng(seed) for seed in SEEDS]
        for one, expected in zip(draw(StackedRng(alone), 2), [draw(ShardedRng(seed)) for seed in SEEDS], strict=True):
            assert torch.equal(one, expected)
    members = stacked.members(3, 10)
    assert members.shape == (2, 3) and all(len(set(row.tolist())) == 3 for row in members)
