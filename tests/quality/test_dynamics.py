import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import play

from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.quality.dynamics import Simulator, compare_next, dynamics_error
from o2o_diffusion.quality.ensemble import DynamicsEnsemble
from o2o_diffusion.types import EnvironmentSpec, Transitions

KEYS = {
    "PointMaze_UMaze-v3": ("desired_goal", "observation"),
    "AntMaze_UMaze-v4": ("achieved_goal", "desired_goal", "observation"),
}


@pytest.mark.parametrize("name", ["Hopper-v5", "HalfCheetah-v5", "InvertedPendulum-v5", *KEYS])
def test_real_rows_obey_the_simulator(name):
    spec = EnvironmentSpec(name, observation_keys=KEYS.get(name, ()))
    real = play(make_environment(spec), 60)
    simulator = Simulator.find(spec, real)
    assert simulator is not None
    truth = simulator(real)
    assert compare_next(real, truth, real)["mean"] < 1e-6
    assert torch.allclose(truth.rewards, real.rewards, atol=1e-4) and torch.equal(truth.terminations, real.terminations)


@pytest.mark.parametrize("name", ["Pendulum-v1", "Reacher-v5", "AdroitHandDoor-v1"])
def test_where_the_observation_is_not_the_state_there_is_no_simulator(name):
    spec = EnvironmentSpec(name)
    assert Simulator.find(spec, play(make_environment(spec), 20)) is None
    assert Simulator.find(None, play(make_environment(spec), 20)) is None


def test_the_error_is_in_units_of_a_step():
    with gym.make("Hopper-v5") as env:
        real = play(env, 10)
        assert dynamics_error(env, real, real)["mean"] < 1e-6
        wrong = real.where(next_observations=real.next_observations + 0.1)
        change = (real.next_observations - real.observations).square()
        assert dynamics_error(env, wrong, real)["mean"] == pytest.approx(
            float(11 * 0.01 / change.sum(1).mean()), rel=1e-3
        )
        found = compare_next(wrong, Simulator(env)(wrong), real)["per_dimension"]
        assert found == pytest.approx((0.01 / change.mean(0)).tolist(), rel=1e-2)


def test_rows_whose_velocity_is_clipped_are_left_out():
    with gym.make("Hopper-v5") as env:
        real, simulator = play(env, 20), Simulator(env)
        simulator.find_limit(real)
        assert simulator.known(real).all()
        clipped = real.observations.clone()
        clipped[:3, -1] = 10.0
        real = real.where(observations=clipped)
        simulator.find_limit(real)
        assert (~simulator.known(real)).nonzero().flatten().tolist() == [0, 1, 2]
        assert dynamics_error(env, real, real)["share"] == pytest.approx(17 / 20)


@pytest.mark.slow
def test_the_learned_model_tells_wrong_dynamics_from_right_ones():
    generator = torch.Generator().manual_seed(0)

    def rows(size: int) -> Transitions:
        observations = torch.randn(size, 3, generator=generator)
        actions = 2 * torch.rand(size, 1, generator=generator) - 1
        following = (
            observations + 0.1 * observations.roll(1, 1) * actions + 0.01 * torch.randn(size, 3, generator=generator)
        )
        return Transitions.create(observations, actions, torch.zeros(size), following, torch.zeros(size))

    real, fresh = rows(1_500), rows(500)
    ensemble = DynamicsEnsemble(real)

    def ratio(batch: Transitions) -> float:
        errors = [compare_next(batch, truth, real)["per_dimension"] for truth in ensemble(batch)]
        return float(np.mean(errors)) / ensemble.real_error

    assert ratio(fresh) == pytest.approx(1, abs=0.35)
    assert ratio(fresh.where(next_observations=fresh.next_observations + 0.1)) > 3
