"""Distances between two sets of rows: per column, column correlations, sliced Wasserstein, MMD and Frechet.

All take generated rows [N, D] and real rows [M, D], and measure in units of the real rows' standard deviations.
"""

import numpy as np
import torch
from torch import Tensor

MMD_ROWS = 2_000
"""Rows of each set in the kernel distance, which has quadratic cost."""


def standardize(rows: Tensor, real: Tensor) -> Tensor:
    """Standardize `rows` [N, D] by the mean and standard deviation of the `real` rows.

    Nearly constant columns (standard deviation below 1e-3) are only centered, so that their noise is not amplified.
    """
    mean, std = real.mean(0), real.std(0)
    return (rows - mean) / torch.where(std < 1e-3, 1.0, std)


def marginal_similarity(generated: Tensor, real: Tensor) -> Tensor:
    """[D] 1 - Kolmogorov-Smirnov statistic of each column: 1 for equal distributions, 0 for disjoint ones."""
    from scipy.stats import ks_2samp

    columns = zip(generated.double().numpy().T, real.double().numpy().T, strict=True)
    statistics = [ks_2samp(first, second, method="asymp").statistic for first, second in columns]  # pyright: ignore[reportAttributeAccessIssue]
    return 1 - torch.tensor(statistics, dtype=torch.float64)


def correlation_similarity(generated: Tensor, real: Tensor) -> float:
    """1 - mean absolute difference of column correlations, in [-1, 1]; constant columns have correlation 0."""
    first, second = (torch.corrcoef(rows.double().T).nan_to_num() for rows in (generated, real))
    pairs = torch.triu_indices(len(first), len(first), offset=1)
    return 1 - float((first - second)[pairs[0], pairs[1]].abs().mean())


def sliced_wasserstein(
    first: Tensor, second: Tensor, *, order: int = 2, num_projections: int = 256, seed: int = 0
) -> float:
    """Sliced Wasserstein distance of `order` 1 (mean) or 2 (root mean square) over random directions.

    In standard deviations of `second`; a shift of the mean by m has a root mean square of |m| / sqrt(D).
    """
    gaps = _projected_gaps(first, second, num_projections, seed)
    return float(gaps.abs().pow(order).mean().pow(1 / order))


def _projected_gaps(first: Tensor, second: Tensor, num_projections: int, seed: int) -> Tensor:
    """[num_projections, N] quantile differences along random directions; the larger set is subsampled."""
    size = min(len(first), len(second))
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(first.shape[1], num_projections, generator=generator)
    directions /= directions.norm(dim=0)
    quantiles = [
        (directions.T @ standardize(rows, second)[torch.randperm(len(rows), generator=generator)[:size]].T).sort(1)
        for rows in (first, second)
    ]
    return quantiles[0].values - quantiles[1].values


def mmd(generated: Tensor, real: Tensor, *, rows: int = MMD_ROWS, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy of `rows` rows of each set; can be slightly negative by chance.

    Kernel exp(-d^2 / (2 m^2)), m the median distance between real rows. Gretton et al. (2012),
    https://jmlr.org/papers/v13/gretton12a.html, equation 3.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        standardize(rows_of, real)[torch.randperm(len(rows_of), generator=generator)[:rows]].double()
        for rows_of in (generated, real)
    )
    within = torch.cdist(second, second)
    scale = 2 * within[within > 0].median().square()
    kernels = [torch.exp(-distance.square() / scale) for distance in (torch.cdist(first, first), within)]
    between = torch.exp(-torch.cdist(first, second).square() / scale).mean()
    return float(sum((k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in kernels) - 2 * between)


def frechet(generated: Tensor, real: Tensor) -> float:
    """Frechet distance: the Wasserstein-2 distance between Gaussians with the means and covariances of the two sets.

    sqrt(|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)).
    """
    first, second = (standardize(rows, real).double() for rows in (generated, real))
    shift = (first.mean(0) - second.mean(0)).square().sum()
    covariances = [torch.atleast_2d(rows.T.cov()) for rows in (first, second)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    squared = shift + covariances[0].trace() + covariances[1].trace() - 2 * cross
    return float(np.sqrt(max(float(squared), 0.0)))
