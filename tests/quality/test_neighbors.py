import pytest
import torch

from o2o_diffusion.quality.neighbors import density_and_coverage, nearest_distance, novelty


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_distance_on_a_line():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert nearest_distance(torch.tensor([[2.9], [10.0]]), line).tolist() == pytest.approx([0.1, 3.0], abs=1e-5)
    assert nearest_distance(torch.tensor([[3.0]]), line, k=2).tolist() == pytest.approx([2.0])


def test_novelty_is_1_for_new_rows_0_for_copies_and_large_far_away():
    training, held_out, fresh = (normal(1_000, 4, seed=seed) for seed in range(3))
    assert novelty(fresh, held_out, training) == pytest.approx(1, abs=0.1)
    assert novelty(training[:500].clone(), held_out, training) == pytest.approx(0, abs=1e-3)
    assert novelty(fresh + 50, held_out, training) > 10
    assert novelty(held_out, held_out, training) == 1


def test_density_and_coverage_of_the_same_distribution():
    """Density is 1, coverage 1 - 2^-k for as many generated rows as real ones."""
    density, coverage = density_and_coverage(normal(3_000, 4, seed=0), normal(3_000, 4, seed=1), k=5)
    assert density == pytest.approx(1, abs=0.05) and coverage == pytest.approx(1 - 2**-5, abs=0.01)


def test_density_and_coverage_see_what_is_missing_and_what_is_too_much():
    real = torch.cat([normal(500, 2, seed=0), normal(500, 2, seed=1) + 30])
    assert density_and_coverage(normal(1_000, 2, seed=2) + 1_000, real) == (0, 0)
    density, coverage = density_and_coverage(normal(1_000, 2, seed=2), real)  # one mode of two, twice as often
    assert coverage == pytest.approx(0.5, abs=0.02) and density == pytest.approx(1, abs=0.15)
    assert density_and_coverage(real.clone(), real)[1] == 1
