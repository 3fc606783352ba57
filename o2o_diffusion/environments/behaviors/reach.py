"""Jacobian-transpose control of Reacher's fingertip."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from o2o_diffusion.errors import InputError

LENGTHS = 0.1, 0.11
"""Distances in m from the shoulder to the elbow and from the elbow to the fingertip."""
STIFFNESS, DAMPING = 15.0, 0.07
"""Action per m^2 of J^T (target - fingertip) and per rad/s; actions are in [-1, 1]."""


class Reach:
    """Pulls the fingertip toward the target and damps both joints."""

    def __init__(self, environment: gym.Env):
        shapes = environment.observation_space.shape, environment.action_space.shape
        if shapes != ((10,), (2,)):
            name = environment.spec.id if environment.spec else environment
            raise InputError(f"the behavior 'reach' drives Reacher only, not {name}")

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """[2] action in [-1, 1] for an observation [10]: cosines, sines, target, joint velocities, tip - target."""
        shoulder, elbow = np.arctan2(observation[2:4], observation[0:2])
        upper, lower = (
            length * np.array([-np.sin(angle), np.cos(angle)])
            for length, angle in zip(LENGTHS, (shoulder, shoulder + elbow), strict=True)
        )
        jacobian = np.stack([upper + lower, lower], axis=1)  # d fingertip / d (shoulder, elbow)
        return np.clip(-STIFFNESS * jacobian.T @ observation[8:10] - DAMPING * observation[6:8], -1, 1)
