"""Create behaviors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_diffusion.environments.behaviors.balance import Balance
from o2o_diffusion.environments.behaviors.policy import SavedPolicy, packaged_policy
from o2o_diffusion.environments.behaviors.reach import Reach
from o2o_diffusion.environments.behaviors.waypoints import Waypoints
from o2o_diffusion.errors import InputError

Behavior = Callable[[Any], np.ndarray]
"""Maps a raw observation of the environment to an action [action_dim] in [-1, 1]."""


CONTROLLERS: dict[str, Callable[[gym.Env], Behavior]] = {"waypoints": Waypoints, "balance": Balance, "reach": Reach}
"""Controllers that need no training, each for its own environments."""


class Random:
    """Uniform actions."""

    def __init__(self, environment: gym.Env, random: np.random.Generator):
        self.shape = environment.action_space.shape
        self.random = random

    def __call__(self, observation: Any) -> np.ndarray:
        """[action_dim] action, independent of the observation."""
        return self.random.uniform(-1, 1, self.shape)


def make_behavior(name: str, environment: gym.Env, *, stochastic: bool, random: np.random.Generator) -> Behavior:
    """Create the behavior `name` (of `CONTROLLERS`, "random" or a packaged policy) for a raw `environment`.

    With `stochastic`, a policy samples its actions. Raises InputError if the name is unknown or does not fit.
    """
    if name == "random":
        return Random(environment, random)
    if name in CONTROLLERS:
        return CONTROLLERS[name](environment)
    policy = SavedPolicy.load(packaged_policy(name), random if stochastic else None)
    shapes = environment.observation_space.shape, environment.action_space.shape
    if shapes != ((policy.observation_dim,), (policy.action_dim,)):
        raise InputError(
            f"the behavior {name!r} takes observations [{policy.observation_dim}] and gives actions "
            f"[{policy.action_dim}], the environment has observations {shapes[0]} and actions {shapes[1]}"
        )
    return policy
