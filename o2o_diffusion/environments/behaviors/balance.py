"""State feedback that keeps the cart and pole of InvertedPendulum upright."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from o2o_diffusion.errors import InputError

GAINS = np.array([1.0, 10.0, 1.0, 2.0]) / 3
"""Action per m, rad, m/s and rad/s; actions are in [-1, 1]."""


class Balance:
    """Pushes the cart under the pole: a linear function of position, angle and their velocities."""

    def __init__(self, environment: gym.Env):
        shapes = environment.observation_space.shape, environment.action_space.shape
        if shapes != ((4,), (1,)):
            name = environment.spec.id if environment.spec else environment
            raise InputError(f"the behavior 'balance' drives InvertedPendulum only, not {name}")

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """[1] action in [-1, 1] for an observation [4]."""
        return np.clip([GAINS @ observation], -1, 1)
