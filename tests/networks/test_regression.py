"""Heteroscedastic regression against a linear Gaussian model, whose mean and deviation are known."""

import math

import pytest
import torch

from o2o_diffusion.networks.regression import Regression, fitted


def rows(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets, and the means and deviations they were drawn with."""
    g = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.rand(size, 2, generator=g) - 1
    mean = torch.stack([3 * inputs[:, 0] - inputs[:, 1], 100 * inputs[:, 1]], 1)
    std = torch.stack([0.1 * (1.5 * inputs[:, 0]).exp(), 5 * (-inputs[:, 1]).exp()], 1)
    return inputs, mean + std * torch.randn(size, 2, generator=g), mean, std


@pytest.fixture(scope="module")
def regression() -> Regression:
    inputs, targets, *_ = rows(4_000)
    return fitted(inputs, targets, updates=800)


def test_mean_and_deviation_of_a_linear_gaussian_are_recovered(regression):
    inputs, _, mean, std = rows(2_000, seed=1)
    predicted = regression(inputs)
    assert ((predicted.mean - mean) / std).abs().mean() < 0.15
    assert (predicted.log_std - std.log()).abs().mean() < 0.15


def test_residuals_are_standard_normal_on_unseen_rows_and_independent_of_the_input(regression):
    inputs, targets, *_ = rows(4_000, seed=2)
    z = regression.standardize(inputs, targets).detach()
    assert z.mean(0).abs().max() < 0.1 and (z.std(0) - 1).abs().max() < 0.1
    upper = inputs[:, 0] > 0
    assert (z[upper].std(0) / z[~upper].std(0) - 1).abs().max() < 0.1


def test_the_density_is_that_of_the_model(regression):
    inputs, targets, mean, std = rows(4_000, seed=3)
    exact = -(0.5 * ((targets - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(1)
    assert abs(regression.log_prob(inputs, targets).mean() - exact.mean()) < 0.06


def test_invert_undoes_standardize(regression):
    inputs, targets, *_ = rows(100, seed=4)
    again = regression.invert(inputs, regression.standardize(inputs, targets))
    assert torch.allclose(again, targets, atol=1e-3)


def test_equal_seeds_fit_equal_weights_and_constant_columns_stay_finite():
    inputs, targets, *_ = rows(200)
    targets = torch.cat([targets, torch.ones(200, 1)], 1)
    first, second = (fitted(inputs, targets, seed=5, updates=20) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.standardize(inputs, targets).isfinite().all()
