"""Environments for agents: float32 vector observations and actions in [-1, 1], as specified by a dataset."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_diffusion.data.spaces import ActionBounds, flatten, observation_dim
from o2o_diffusion.environments.physics import change_physics
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.types import EnvironmentSpec

ALLOWED = ("gymnasium.envs.", "gymnasium_robotics.")
"""Packages allowed to provide environments: a dataset's metadata must not control imports."""


class AgentEnvironment(gym.Wrapper):
    """Flattens observations to float32 vectors by `keys` and maps actions from [-1, 1] to the environment's box."""

    def __init__(self, environment: gym.Env, keys: tuple[str, ...]):
        super().__init__(environment)
        where = environment.spec.id if environment.spec else type(environment.unwrapped).__name__
        self.keys = keys
        self.bounds = ActionBounds.of(environment.action_space, where)
        shape = (observation_dim(environment.observation_space, keys, where),)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, self.bounds.low.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; returns its first observation, [observation_dim] float32, and infos."""
        observation, info = self.env.reset(seed=seed, options=options)
        return flatten(observation, self.keys), info

    def step(self, action: np.ndarray):
        """Take one step; `action` [action_dim] is clipped to [-1, 1]."""
        observation, reward, terminated, truncated, info = self.env.step(self.bounds.to_box(action))
        return flatten(observation, self.keys), reward, terminated, truncated, info


def make_environment(spec: EnvironmentSpec) -> AgentEnvironment:
    """Create the environment of `spec` for an agent; raises InputError if it is unknown or its spaces do not fit."""
    return AgentEnvironment(make_raw_environment(spec), tuple(spec.observation_keys))


def make_raw_environment(spec: EnvironmentSpec) -> gym.Env:
    """Create the environment of `spec` with its own spaces, for recording; raises InputError if that fails.

    Wrappers and entry points named in a dataset are ignored: the id selects a locally registered environment.
    """
    check_registered(spec.id)
    kwargs: Mapping[str, Any] = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    try:
        with quiet():
            options = {"max_episode_steps": spec.max_episode_steps, "disable_env_checker": True}
            environment = gym.make(spec.id, **options, **kwargs)
    except Exception as error:  # environments raise many kinds of exceptions, all caused by user settings
        raise InputError(f"environment {spec.id} with {dict(kwargs)} cannot be created: {error}") from error
    if spec.physics:
        change_physics(environment, spec.physics)
    return environment


def check_registered(environment_id: str) -> None:
    """Raise InputError unless `environment_id` is registered and its code comes from an allowed package."""
    _register()
    known = gym.registry.get(environment_id)
    if known is None:
        raise InputError(f"unknown environment {environment_id!r}{nearest(environment_id, gym.registry)}")
    if not str(known.entry_point).startswith(ALLOWED):
        allowed = " or ".join(name.rstrip(".") for name in ALLOWED)
        raise InputError(f"environment {environment_id}: its code, {known.entry_point}, is not from {allowed}")


@functools.cache
def _register() -> None:
    """Register gymnasium_robotics' environments, without the notices it prints on import."""
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress version and deprecation notices while an environment is created, and MuJoCo's log file for them."""
    import mujoco as module

    mujoco: Any = module  # its stubs lack these functions
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        mujoco.set_mju_user_warning(before)
