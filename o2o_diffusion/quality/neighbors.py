"""Nearest-neighbor measures: novelty (rows are not copies), density (plausibility) and coverage (variety).

Density and coverage: Naeem et al. (2020), https://arxiv.org/abs/2002.09797, equations 6 and 7. All rows are [., D].
"""

import torch
from torch import Tensor

from o2o_diffusion.quality.distances import standardize

NOVELTY_ROWS = 2_000
"""Maximum number of rows in the nearest-neighbor search of `novelty`."""


def nearest_distance(rows: Tensor, others: Tensor, *, k: int = 1) -> Tensor:
    """[N] distance from each of `rows` to its k-th nearest neighbor in `others`."""
    from sklearn.neighbors import NearestNeighbors

    found, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(others.numpy()).kneighbors(rows.numpy())
    return torch.from_numpy(found[:, -1])


def novelty(rows: Tensor, held_out: Tensor, training: Tensor, *, num_rows: int = NOVELTY_ROWS, seed: int = 0) -> float:
    """Median distance of `rows` to the nearest training row, divided by the same median of held-out real rows.

    About 1 for rows as new as real ones, far below 1 for memorized rows, above 1 for rows far from the data.
    """
    known = standardize(training, training)
    medians = []
    for some in (rows, held_out):
        chosen = torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))[:num_rows]
        medians.append(float(nearest_distance(standardize(some[chosen], training), known).median()))
    return medians[0] / medians[1] if medians[1] > 0 else float("nan")


def density_and_coverage(generated: Tensor, real: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Density and coverage with `k` neighbors.

    The ball of a real row reaches to its k-th nearest other real row. Density is the mean number of balls that contain
    a generated row, divided by `k`; coverage is the share of balls that contain a generated row. Rows from the real
    distribution have density 1 and, if there are as many as real rows, coverage 1 - 2^-k.
    """
    generated, real = standardize(generated, real), standardize(real, real)
    radii = nearest_distance(real, real, k=k + 1).float()  # the first neighbor is the row itself
    inside = covered = 0.0
    for rows, radius in zip(real.split(1_000), radii.split(1_000), strict=True):
        within = torch.cdist(rows, generated) <= radius[:, None]
        inside += float(within.sum())
        covered += float(within.any(1).sum())
    return inside / (k * len(generated)), covered / len(real)
