"""Error of next observations against simulated or predicted ones, in units of real rows."""

from typing import Any

import torch

from o2o_diffusion.types import Transitions


def compare_next(batch: Transitions, truth: Transitions, real: Transitions) -> dict[str, Any]:
    """Squared error of next observations, normalized by `real` rows.

    `mean` and `median` are divided by the mean squared one-step change. `in_variances` is divided by the variance of
    each dimension and averaged over dimensions. `per_dimension` [observation_dim] is divided by each dimension's own
    mean squared change, or by its variance if it never changes within an episode (a goal).
    """
    squared = (batch.next_observations - truth.next_observations).double().square()
    change = (real.next_observations - real.observations).double().square()
    variance = real.observations.double().var(0).clamp(min=1e-6)
    scale = torch.where(change.mean(0) > 0, change.mean(0), variance)
    total = float(change.sum(1).mean())
    return {
        "mean": float(squared.sum(1).mean()) / total,
        "median": float(squared.sum(1).median()) / total,
        "in_variances": float((squared.mean(0) / variance).mean()),
        "per_dimension": (squared.mean(0) / scale).tolist(),
    }
