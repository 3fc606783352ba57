"""Environments with faults."""

import time

import gymnasium as gym
import numpy as np


class Faulty(gym.Env):
    """Observations and rewards of 0 without end; its step number `at` does `what`."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, what: str, at: int = 3):
        self.what, self.at, self.steps = what, at, 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        if self.what == "reset":
            raise RuntimeError("no connection\nto the simulator")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation, reward = np.zeros(3, np.float32), 0.0
        if self.steps == self.at:
            if self.what == "raise":
                raise RuntimeError("no connection\nto the simulator")
            if self.what == "hang":
                time.sleep(30)
            observation = {"column": np.zeros(4, np.float32), "nan": np.full(3, np.nan, np.float32)}.get(
                self.what, observation
            )
            reward = {"reward": float("nan"), "large": 1e38}.get(self.what, reward)
        return observation, reward, False, False, {}
