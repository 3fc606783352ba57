import gymnasium as gym
import pytest
import torch

from o2o_diffusion.quality import auc, dynamics_error, sliced_wasserstein
from o2o_diffusion.types import Transitions


def test_sliced_wasserstein_of_a_shift_is_its_length_per_dimension():
    """W2 of a shift along a direction is the shift's part along it: on average over directions |m|^2 / D."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(4_000, 4, generator=generator)
    shifted = torch.randn(4_000, 4, generator=generator) + torch.tensor([2.0, 0.0, 0.0, 0.0])
    assert sliced_wasserstein(shifted, real) == pytest.approx(1.0, abs=0.1)
    assert sliced_wasserstein(real, real) < 0.1


def test_auc_tells_apart_what_differs():
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    real, same, other = (torch.randn(500, 2, generator=generator) for _ in range(3))
    assert auc(same, real, folds=3) < 0.6
    assert auc(other + 3, real, folds=3) > 0.95


def test_simulated_rows_have_no_dynamics_error():
    with gym.make("Hopper-v5") as env:
        observation, _ = env.reset(seed=0)
        env.action_space.seed(0)
        rows = []
        for _ in range(10):
            action = env.action_space.sample()
            following, *_ = env.step(action)
            rows.append([torch.from_numpy(x).float() for x in (observation, action, following)])
            observation = following
        states, actions, following = (torch.stack(column) for column in zip(*rows, strict=True))
        real = Transitions.create(states, actions, torch.zeros(10), following, torch.zeros(10))
        assert dynamics_error(env, real, real)["mean"] < 1e-6
        wrong = real.where(next_observations=following + 0.1)
        change = (following - states).square().sum(1).mean()
        assert dynamics_error(env, wrong, real)["mean"] == pytest.approx(float(11 * 0.01 / change), rel=1e-3)
