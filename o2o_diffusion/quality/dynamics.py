"""Dynamics error of generated transitions, against a simulator (`Simulator`) or a learned model (`ensemble.py`).

Both map transitions to transitions with the same observations and actions and with the true or predicted outcome.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.data.spaces import flatten
from o2o_diffusion.environments.environment import AgentEnvironment, make_environment, quiet
from o2o_diffusion.environments.physics import model_holder
from o2o_diffusion.quality.prediction import compare_next
from o2o_diffusion.types import EnvironmentSpec, Transitions

TOLERANCE = 1e-3
"""Error on real rows, relative to their mean squared change, above which observations are not full states."""


class Simulator:
    """MuJoCo environment that is set to an observation and stepped from there.

    Observations must hold all positions, except for up to two coordinates of the root, and all velocities: Hopper,
    HalfCheetah, Walker2d, Swimmer, InvertedPendulum, PointMaze, AntMaze (which adds the goal) and similar environments.
    Raises ValueError otherwise. `error` is the median error on real rows, once `find` has checked them.
    """

    name = "simulator"

    def __init__(self, environment: gym.Env):
        self.environment = (
            environment if isinstance(environment, AgentEnvironment) else AgentEnvironment(environment, ())
        )
        self.whole: Any = self.environment.unwrapped
        self.body: Any = model_holder(self.environment)
        if not hasattr(self.body, "set_state") or not hasattr(self.body, "model"):
            raise ValueError("the environment's state cannot be set")
        columns = _fields(self.environment)
        self.goal = columns.get("desired_goal")
        state = [columns[name] for name in columns if name != "desired_goal"]
        self.state = np.concatenate([np.arange(where.start, where.stop) for where in state])
        self.hidden = self.body.model.nq + self.body.model.nv - len(self.state)
        if not 0 <= self.hidden <= 2:
            raise ValueError(f"the observation holds {-self.hidden} entries fewer than the state")
        self.limit = self.error = float("inf")
        self.environment.reset(seed=0)

    @classmethod
    def find(cls, spec: EnvironmentSpec | None, real: Transitions) -> "Simulator | None":
        """Simulator of a dataset's environment if it reproduces the `real` rows (up to 200 are checked), else None."""
        if spec is None:
            return None
        try:
            simulator = cls(make_environment(spec))
        except ValueError:
            return None
        simulator.find_limit(real)
        known = real[simulator.known(real)][:200]
        if len(known):
            simulator.error = compare_next(known, simulator(known), real)["median"]
        return simulator if simulator.error < TOLERANCE else None

    def __call__(self, batch: Transitions) -> Transitions:
        """Replace the next observations, rewards and terminations of `batch` with simulated ones."""
        pairs = zip(batch.observations.double().numpy(), batch.actions.numpy(), strict=True)
        with quiet():  # MuJoCo logs warnings about invalid generated states to a file
            steps = [self._step(observation, action) for observation, action in pairs]
        following, rewards, terminations = (np.array(column, dtype=np.float32) for column in zip(*steps, strict=True))
        return batch.where(
            next_observations=torch.from_numpy(following),
            rewards=torch.from_numpy(rewards),
            terminations=torch.from_numpy(terminations),
        )

    def find_limit(self, real: Transitions) -> None:
        """Set `limit` below the threshold at which observations clip velocities: 10 in Hopper and Walker2d.

        Clipping is detected if the simulator fails to reproduce the `real` rows with the largest velocity.
        """
        fastest = self._speed(real)
        rows = real[fastest == fastest.max()][:50]
        if compare_next(rows, self(rows), real)["mean"] > TOLERANCE:
            self.limit = 0.99 * float(fastest.max())

    def known(self, batch: Transitions) -> Tensor:
        """[B] whether the observation determines the state: no velocity reaches `limit`."""
        return self._speed(batch) < self.limit

    def _speed(self, batch: Transitions) -> Tensor:
        return batch.observations[:, self.state[-self.body.model.nv :]].abs().amax(1)

    def _step(self, observation: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        state = np.concatenate([np.zeros(self.hidden), observation[self.state]])
        self.body.set_state(*np.split(state, [self.body.model.nq]))
        if self.goal is not None:
            self.whole.goal = observation[self.goal]
        following, reward, terminated, *_ = self.whole.step(self.environment.bounds.to_box(action))
        return flatten(following, self.environment.keys), float(reward), bool(terminated)


def dynamics_error(
    env: gym.Env, generated: Transitions, real: Transitions, *, limit: float | None = None
) -> dict[str, float]:
    """Error of generated next observations in the simulator, normalized by the one-step changes of `real` rows.

    Squared errors are divided by the mean squared change. Excludes rows with a velocity of at least `limit` (None: set
    by `Simulator.find_limit`). Returns the mean, the median and the share of rows compared.
    """
    simulator = Simulator(env)
    if limit is None:
        simulator.find_limit(real)
    else:
        simulator.limit = limit
    known = simulator.known(generated)
    errors = compare_next(generated[known], simulator(generated[known]), real)
    return {"mean": errors["mean"], "median": errors["median"], "share": float(known.float().mean())}


def _fields(environment: AgentEnvironment) -> dict[str, slice]:
    """Column slice of each field of the flattened observation; plain vectors have one field, ""."""
    columns, start = {}, 0
    spaces: Any = environment.env.observation_space
    for key in environment.keys or ("",):
        width = (spaces[key] if key else spaces).shape[0]
        columns[key] = slice(start, start + width)
        start += width
    return columns
