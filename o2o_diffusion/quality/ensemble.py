"""Learned dynamics, for tasks without a simulator that can be set to an observation (Adroit, Pendulum, tables).

Small networks predict the change in the observation. They are fitted to different parts of the real rows, so that the
error on generated rows can be compared with the error of the same network on unseen real rows.
"""

import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng, seeded
from o2o_diffusion.networks.regression import Regression
from o2o_diffusion.quality.prediction import compare_next
from o2o_diffusion.types import Transitions

MAX_UPDATES, HIDDEN = 1_000, (128, 128)


class DynamicsEnsemble:
    """`size` networks, each fitted to all but one contiguous fold of the real rows.

    `real_error` is the mean error on the held-out folds, each dimension relative to its own change; a value near 1
    means too few rows to learn from.
    """

    name = "ensemble"

    def __init__(self, real: Transitions, *, size: int = 4, seed: int = 0):
        from sklearn.model_selection import KFold

        self.members, errors = [], []
        for number, (fitted, left_out) in enumerate(KFold(size).split(np.zeros(len(real)))):
            self.members.append(_fitted(real[torch.from_numpy(fitted)], seed + number))
            rows = real[torch.from_numpy(left_out)]
            errors.append(compare_next(rows, _predict(self.members[-1], rows), real)["per_dimension"])
        self.real_error = float(np.mean(errors))

    def __call__(self, batch: Transitions) -> list[Transitions]:
        """Predict the next observations of `batch` with each member."""
        return [_predict(member, batch) for member in self.members]


def _fitted(rows: Transitions, seed: int) -> Regression:
    """A regression of changes on observations and actions."""
    inputs, changes = _inputs(rows), rows.next_observations - rows.observations
    with seeded(seed):
        model = Regression(inputs.shape[1], changes.shape[1], hidden=HIDDEN)
    return model.fit(inputs, changes, rng=ShardedRng(seed, shared=False), updates=min(MAX_UPDATES, len(rows) // 2))


@torch.no_grad()
def _predict(member: Regression, rows: Transitions) -> Transitions:
    return rows.where(next_observations=rows.observations + member(_inputs(rows)).mean)


def _inputs(rows: Transitions) -> Tensor:
    """[B, observation_dim + action_dim] inputs of the networks."""
    return torch.cat([rows.observations, rows.actions], dim=1)
