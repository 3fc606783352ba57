"""Statistics over seeds and tasks: means, interquartile means, intervals, paired differences, Holm's correction.

A sample is the scores of one task, one per seed. Intervals are 95% bootstrap intervals with seeds resampled within each
task, as by Agarwal et al. (2021), https://arxiv.org/abs/2108.13264; scipy does the resampling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Sample = Sequence[float]
RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval; NaN bounds if a task has fewer than two seeds."""

    value: float
    low: float
    high: float


def mean(samples: Sequence[Sample]) -> Estimate:
    """Mean over tasks of the mean over seeds."""
    return bootstrap(samples, lambda *parts, axis: sum(part.mean(axis) for part in parts) / len(parts))


def interquartile_mean(samples: Sequence[Sample]) -> Estimate:
    """Mean of the middle half of all scores."""
    return bootstrap(samples, lambda *parts, axis: stats.trim_mean(np.concatenate(parts, axis), 0.25, axis))


def improvement(ours: Sequence[Sample], theirs: Sequence[Sample]) -> Estimate:
    """Probability that a run of ours scores higher than one of theirs on the same task, mean over tasks.

    Ties count half. `ours` and `theirs` hold the same tasks in the same order.
    """

    def probability(*parts: np.ndarray, axis: int) -> Any:
        pairs = zip(parts[: len(ours)], parts[len(ours) :], strict=True)
        signs = [np.sign(a[..., :, None] - b[..., None, :]).mean((-2, -1)) for a, b in pairs]
        return 0.5 + 0.5 * sum(signs) / len(signs)

    return bootstrap([*ours, *theirs], probability)


def bootstrap(samples: Sequence[Sample], statistic: Callable[..., Any]) -> Estimate:
    """Estimate `statistic(*samples, axis=-1)` with a percentile interval over resampled seeds."""
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if min(len(array) for array in arrays) < 2:
        return Estimate(value, np.nan, np.nan)
    found = stats.bootstrap(
        arrays, statistic, n_resamples=RESAMPLES, vectorized=True, axis=-1, method="percentile", rng=0
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference of 0 by permutation of the signs, exact for few pairs."""
    if len(differences) < 2:
        return 1.0
    zeros = np.zeros(len(differences))
    found = stats.permutation_test(
        (np.asarray(differences), zeros),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=0,
    )
    return float(found.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values, by name."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted
