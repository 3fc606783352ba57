"""What nearest neighbours tell: whether rows are copies of training rows, plausible, and as varied as the real ones.

Density and coverage: Naeem et al. (2020), https://arxiv.org/abs/2002.09797, equations 6 and 7. All rows are [., D].
"""

import torch
from torch import Tensor

from o2o_diffusion.quality.distances import standardize

NOVELTY_ROWS = 2_000
"""Rows whose nearest neighbour among all training rows is looked for (a default of ours)."""


def nearest_distance(rows: Tensor, others: Tensor, *, k: int = 1) -> Tensor:
    """[N] distance of each of `rows` to the k-th nearest of `others`."""
    from sklearn.neighbors import NearestNeighbors

    found, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(others.numpy()).kneighbors(rows.numpy())
    return torch.from_numpy(found[:, -1])


def novelty(rows: Tensor, held_out: Tensor, training: Tensor, *, num_rows: int = NOVELTY_ROWS, seed: int = 0) -> float:
    """Median distance of `rows` to their nearest training row, over the same of held-out real rows.

    About 1 for rows as new as real ones, far below 1 for memorised ones, above 1 for rows where no real ones are.
    """
    known = standardize(training, training)
    medians = []
    for some in (rows, held_out):
        chosen = torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))[:num_rows]
        medians.append(float(nearest_distance(standardize(some[chosen], training), known).median()))
    return medians[0] / medians[1] if medians[1] > 0 else float("nan")


def density_and_coverage(generated: Tensor, real: Tensor, *, k: int = 5) -> tuple[float, float]:
    """Density and coverage with `k` neighbours: how many real rows' balls a generated row lies in, over k; and the
    share of real rows' balls with a generated row in them. A ball reaches to the k-th nearest other real row.

    Rows from the real distribution have density 1 and, with as many as real ones, coverage 1 - 2^-k.
    """
    generated, real = standardize(generated, real), standardize(real, real)
    radii = nearest_distance(real, real, k=k + 1).float()  # the first neighbour is the row itself
    inside = covered = 0.0
    for rows, radius in zip(real.split(1_000), radii.split(1_000), strict=True):
        within = torch.cdist(rows, generated) <= radius[:, None]
        inside += float(within.sum())
        covered += float(within.any(1).sum())
    return inside / (k * len(generated)), covered / len(real)
