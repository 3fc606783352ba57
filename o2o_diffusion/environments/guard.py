"""The boundary of the environment: every answer is checked and timed, and every fault blames the right side."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from o2o_diffusion.errors import Fault

LIMIT = 1e10
"""Largest magnitude of a reward or an observation; MuJoCo too considers larger numbers diverged (mjMAXVAL)."""


class StepFault(Fault):
    """A fault of the environment or of the policy's action, raised before anything of the run has changed."""


class GuardedEnvironment(gym.Wrapper):
    """Checks actions, observations and rewards, and limits the time of each call to `timeout` seconds (0: no limit).

    Raises StepFault in one line if the policy's action is not finite, or if the environment raises an exception, takes
    too long, or returns an observation of another shape or numbers that are not finite or beyond 1e10.
    """

    def __init__(self, environment: gym.Env, *, timeout: float = 0.0):
        super().__init__(environment)
        self.timeout = timeout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode; returns its first observation and infos."""
        with self._blamed("reset"):
            observation, info = self.env.reset(seed=seed, options=options)
        self._check("reset", observation, 0.0)
        return observation, info

    def step(self, action: np.ndarray):
        """Take one step with a finite `action` [action_dim]."""
        if not np.isfinite(action).all():
            raise StepFault(f"the policy's action {action.tolist()} is not finite")
        with self._blamed("step"):
            observation, reward, terminated, truncated, info = self.env.step(action)
        self._check("step", observation, reward)
        return observation, reward, bool(terminated), bool(truncated), info

    @contextlib.contextmanager
    def _blamed(self, call: str) -> Iterator[None]:
        try:
            with time_limit(self.timeout):
                yield
        except Exception as error:  # environments raise many kinds of exceptions
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise StepFault(f"the environment's {call} raised {reason}") from error

    def _check(self, call: str, observation: Any, reward: SupportsFloat) -> None:
        if np.shape(observation) != self.observation_space.shape:
            shape, expected = list(np.shape(observation)), list(self.observation_space.shape or ())
            raise StepFault(f"the environment's {call} returned an observation of shape {shape}, expected {expected}")
        for name, values in (("observation", observation), ("reward", reward)):
            largest = float(np.abs(np.asarray(values, dtype=np.float64)).max(initial=0.0))
            if not largest <= LIMIT:
                problem = f"a magnitude of {largest:.3g}, expected at most {LIMIT:g}"
                is_finite = np.isfinite(largest)
                raise StepFault(f"the environment's {call}: {name} has {problem if is_finite else 'NaN or infinity'}")


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block after `seconds`; no limit if 0, in other threads, or without SIGALRM."""
    if not seconds or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def expire(number: int, frame: Any) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
