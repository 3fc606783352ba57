"""Environments come from the registry only, and speak float32 vectors and actions in [-1, 1]."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.environments.environment import make_environment, make_raw_environment
from o2o_diffusion.errors import InputError
from o2o_diffusion.types import EnvironmentSpec


def test_actions_are_rescaled_to_the_environments_box():
    spec = EnvironmentSpec("Pendulum-v1")
    ours, theirs = make_environment(spec), make_raw_environment(spec)
    assert ours.action_space == gym.spaces.Box(-1, 1, (1,)) and theirs.action_space.high == 2
    first, _ = ours.reset(seed=0)
    assert first.dtype == np.float32 and np.array_equal(first, theirs.reset(seed=0)[0])
    for action, torque in ((0.5, 1.0), (-1.0, -2.0), (3.0, 2.0)):
        a, b = ours.step(np.array([action], np.float32)), theirs.step(np.array([torque], np.float32))
        assert np.array_equal(a[0], b[0]) and a[1] == b[1]


def test_the_datasets_limit_and_keyword_arguments_are_used():
    environment = make_environment(EnvironmentSpec("Pendulum-v1", {"g": 3.0, "render_mode": "human"}, 5))
    environment.reset(seed=0)
    ends = [environment.step(np.zeros(1, np.float32))[3] for _ in range(5)]
    assert ends == [False] * 4 + [True]
    assert getattr(environment.unwrapped, "g") == 3.0 and environment.render_mode is None  # noqa: B009


def test_goal_observations_are_flattened_by_key():
    spec = EnvironmentSpec("PointMaze_UMaze-v3", observation_keys=("desired_goal", "observation"))
    raw, _ = make_raw_environment(spec).reset(seed=0)
    flat, _ = make_environment(spec).reset(seed=0)
    assert np.array_equal(flat, np.concatenate([raw["desired_goal"], raw["observation"]]).astype(np.float32))
    with pytest.raises(InputError, match=r"observations have the fields .*expected \['nothing'\]"):
        make_environment(replace(spec, observation_keys=("nothing",)))
    with pytest.raises(InputError, match="observations have the fields"):
        make_environment(replace(spec, observation_keys=()))


def test_unknown_environments_get_the_nearest_name():
    with pytest.raises(InputError, match="unknown environment 'HalfChetah-v5'; did you mean 'HalfCheetah-v5'"):
        make_environment(EnvironmentSpec("HalfChetah-v5"))
    with pytest.raises(InputError, match="unknown environment 'os:Hopper-v5'"):
        make_environment(EnvironmentSpec("os:Hopper-v5"))


def test_code_from_elsewhere_is_not_run():
    gym.register("Foreign-v0", entry_point="antigravity:Environment")
    try:
        with pytest.raises(InputError, match=r"its code, antigravity:Environment, is not from gymnasium\.envs or"):
            make_environment(EnvironmentSpec("Foreign-v0"))
    finally:
        del gym.registry["Foreign-v0"]


@pytest.mark.parametrize(
    "spec, message",
    [
        (EnvironmentSpec("CartPole-v1"), "actions must be a bounded vector"),
        (EnvironmentSpec("Pendulum-v1", {"gravity": 1}), "cannot be created: .*gravity"),
        (EnvironmentSpec("HalfCheetah-v2"), "HalfCheetah-v2 with {} cannot be created"),
    ],
)
def test_environments_that_do_not_work_are_one_line(spec, message):
    with pytest.raises(InputError, match=message) as error:
        make_environment(spec)
    assert "\n" not in str(error.value)


def test_actions_outside_are_clipped_to_the_box():
    bounds = ActionBounds(np.float32([-2, 0]), np.float32([2, 1]))
    unit = np.float32([[-3, -3], [-1, -1], [0, 0], [3, 3]])
    assert bounds.to_box(unit).tolist() == [[-2, 0], [-2, 0], [0, 0.5], [2, 1]]
    assert np.allclose(bounds.to_unit(bounds.to_box(unit)), unit.clip(-1, 1))
