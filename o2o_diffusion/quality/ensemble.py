"""Learned dynamics, for tasks without a simulator that can be set to an observation (Adroit, Pendulum, tables).

Small networks predict the change in the observation. They are fitted to different parts of the real rows, so that the
error on generated rows can be compared with the error of the same network on unseen real rows.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.quality.prediction import compare_next
from o2o_diffusion.types import Transitions

BATCH_SIZE, MAX_STEPS = 256, 2_000


class DynamicsEnsemble:
    """`size` networks, each fitted to all but one contiguous fold of the real rows.

    `real_error` is the mean error on the held-out folds, each dimension relative to its own change; a value near 1
    means too few rows to learn from. Each network has two layers of 128 units.
    """

    name = "ensemble"

    def __init__(self, real: Transitions, *, size: int = 4, seed: int = 0):
        from sklearn.model_selection import KFold

        inputs, changes = _inputs(real), real.next_observations - real.observations
        self.mean, self.std = inputs.mean(0), inputs.std(0).clamp(min=1e-3)
        self.change_mean, self.change_std = changes.mean(0), changes.std(0).clamp(min=1e-6)
        self.members, errors = [], []
        for number, (fitted, left_out) in enumerate(KFold(size).split(inputs.numpy())):
            self.members.append(self._fit(real[torch.from_numpy(fitted)], seed + number))
            rows = real[torch.from_numpy(left_out)]
            errors.append(compare_next(rows, self._predict(self.members[-1], rows), real)["per_dimension"])
        self.real_error = float(np.mean(errors))

    def __call__(self, batch: Transitions) -> list[Transitions]:
        """Predict the next observations of `batch` with each member."""
        return [self._predict(member, batch) for member in self.members]

    def _fit(self, rows: Transitions, seed: int) -> Any:
        from sklearn.neural_network import MLPRegressor

        changes = (rows.next_observations - rows.observations - self.change_mean) / self.change_std
        epochs = max(1, BATCH_SIZE * MAX_STEPS // len(rows))
        options: Any = {"hidden_layer_sizes": (128, 128), "batch_size": min(BATCH_SIZE, len(rows)), "max_iter": epochs}
        member = MLPRegressor(**options, early_stopping=True, random_state=seed)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # reaching the epoch limit is expected
            return member.fit(self._normalized(rows), changes.numpy())

    def _predict(self, member: Any, rows: Transitions) -> Transitions:
        changes = torch.from_numpy(np.asarray(member.predict(self._normalized(rows)), dtype=np.float32))
        changes = changes.reshape(rows.observations.shape) * self.change_std + self.change_mean
        return rows.where(next_observations=rows.observations + changes)

    def _normalized(self, rows: Transitions) -> np.ndarray:
        return ((_inputs(rows) - self.mean) / self.std).numpy()


def _inputs(rows: Transitions) -> Tensor:
    """[B, observation_dim + action_dim] inputs of the networks."""
    return torch.cat([rows.observations, rows.actions], dim=1)
