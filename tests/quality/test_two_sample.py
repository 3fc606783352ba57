import math

import pytest
import torch

from o2o_diffusion.quality.two_sample import auc, jensen_shannon, label_classifier


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_auc_is_half_for_equal_distributions():
    assert auc(normal(500, 2, seed=0), normal(500, 2, seed=1), folds=3) == pytest.approx(0.5, abs=0.07)


def test_auc_of_a_shifted_gaussian():
    """The best test of N(m, 1) against N(0, 1) has AUC Phi(m / sqrt 2)."""
    real, shifted = normal(3_000, 1, seed=0), normal(3_000, 1, seed=1) + 1.0
    assert auc(shifted, real, folds=2) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.02)
    assert auc(shifted + 9, real, folds=2) > 0.999


def test_jensen_shannon_is_between_0_and_ln_2():
    real, same = normal(2_000, 2, seed=0), normal(2_000, 2, seed=1)
    assert jensen_shannon(same, real, folds=2) < 0.01
    assert jensen_shannon(same + 20, real, folds=2) == pytest.approx(math.log(2), abs=0.01)


def test_jensen_shannon_of_a_shifted_gaussian():
    """Reference the integral ln 2 - E[ln(1 + exp(-m (x - m / 2)))] for x of N(m, 1)."""
    x = torch.linspace(-8, 10, 20_001).double()
    density = torch.exp(-((x - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    exact = math.log(2) - float((density * torch.log1p(torch.exp(0.5 - x))).sum() * (x[1] - x[0]))
    real, shifted = normal(3_000, 1, seed=0), normal(4_000, 1, seed=1) + 1.0  # more rows of one kind do not matter
    assert exact - 0.03 < jensen_shannon(shifted, real, folds=2) < exact + 0.01  # trees find a lower bound


def test_labels_are_told_apart():
    online, offline = normal(500, 2, seed=0) + 4, normal(500, 2, seed=1)
    classify = label_classifier(online, offline)
    assert classify(normal(500, 2, seed=2) + 4) > 0.95 and classify(normal(500, 2, seed=3)) < 0.05
    mixed = torch.cat([normal(500, 2, seed=2) + 4, normal(500, 2, seed=3)])
    assert classify(mixed) == pytest.approx(0.5, abs=0.03)
