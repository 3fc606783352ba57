import math

import pytest
import torch

from o2o_diffusion.quality.distances import (
    correlation_similarity,
    frechet,
    marginal_similarity,
    mmd,
    sliced_wasserstein,
    standardize,
)

SHIFT = torch.tensor([2.0, 0.0, 0.0, 0.0])


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_constant_column_stays_in_its_own_unit():
    real = torch.cat([3 * normal(1_000, 1, seed=0) + 1, torch.full((1_000, 1), 5.0)], dim=1)
    z = standardize(real, real)
    assert z[:, 0].std() == pytest.approx(1.0, abs=1e-5) and (z[:, 1] == 0).all()
    assert standardize(torch.tensor([[1.0, 5.5]]), real)[0, 1] == pytest.approx(0.5)


def test_kolmogorov_smirnov_of_a_shifted_gaussian():
    """The distribution functions of N(0, 1) and N(m, 1) differ most at m / 2, by erf(m / sqrt 8)."""
    real, shifted = normal(20_000, 4, seed=0), normal(20_000, 4, seed=1) + SHIFT
    similarity = marginal_similarity(shifted, real)
    assert similarity[0] == pytest.approx(1 - math.erf(2 / math.sqrt(8)), abs=0.02)
    assert (similarity[1:] > 0.97).all()
    assert marginal_similarity(real, real + 100).max() == 0


def test_correlation_similarity_is_the_mean_difference_over_pairs():
    """Columns 0 and 1 equal against independent: one pair of three differs by 1."""
    real = normal(20_000, 3, seed=0)
    tied = real[:, [0, 0, 2]]
    assert correlation_similarity(tied, real) == pytest.approx(1 - 1 / 3, abs=0.02)
    assert correlation_similarity(real, real) == pytest.approx(1)
    assert math.isfinite(correlation_similarity(torch.zeros(10, 3), real))


def test_sliced_wasserstein_of_a_shift_is_its_length_per_dimension():
    """W2 of a shift along a direction is the shift's part along it: on average over directions |m|^2 / D."""
    real, shifted = normal(4_000, 4, seed=0), normal(4_000, 4, seed=1) + SHIFT
    assert sliced_wasserstein(shifted, real) == pytest.approx(1.0, abs=0.1)
    assert sliced_wasserstein(real, real) < 0.1


def test_sliced_wasserstein_1_of_a_shift_is_the_mean_projection():
    """In two dimensions the mean of |m . u| over directions u is 2 |m| / pi, the root mean square |m| / sqrt 2."""
    real = normal(2_000, 2, seed=0)
    shift = torch.tensor([2.0, 0.0]) * real.std(0)
    distances = [sliced_wasserstein(real + shift, real, order=order, num_projections=500) for order in (1, 2)]
    assert distances == pytest.approx([4 / math.pi, 2 / math.sqrt(2)], abs=0.05)


def test_frechet_of_gaussians_is_closed():
    """|m|^2 + sum (s1 - s2)^2 for axis-parallel covariances, in units of the second's standard deviations."""
    real = normal(50_000, 4, seed=0)
    other = 3 * normal(50_000, 4, seed=1) + SHIFT
    assert frechet(other, real) == pytest.approx(math.sqrt(4 + 4 * (3 - 1) ** 2), rel=0.02)
    assert frechet(10 * other, 10 * real) == pytest.approx(frechet(other, real), rel=1e-3)
    assert frechet(real, real) < 1e-3


def test_mmd_of_gaussians_is_closed():
    """E k of N(m, I) and N(0, I), kernel width h, D dimensions: (h^2 / (h^2 + 2))^(D/2) exp(-m^2 / (2 (h^2 + 2)))."""
    real, same, shifted = (normal(3_000, 4, seed=seed) for seed in (100, 300, 200))
    squared_width = 2 * 3.3567  # of the median of a chi-squared number with 4 degrees, times 2
    within = (squared_width / (squared_width + 2)) ** 2
    between = within * math.exp(-4 / (2 * (squared_width + 2)))
    assert mmd(shifted + SHIFT, real) == pytest.approx(2 * within - 2 * between, rel=0.06)
    assert abs(mmd(same, real)) < 2e-3
