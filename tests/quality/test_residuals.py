import pytest
import torch

from o2o_diffusion.quality import residuals
from o2o_diffusion.quality.residuals import Residuals
from o2o_diffusion.types import Transitions


def rows(size: int, seed: int, *, noise: float = 1.0, error: float = 0.0) -> Transitions:
    """a = s + noise x N(0, 0.1^2), s' = s + a + error x N(0, 1); the second entry of s, a goal, never changes."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(size, 2, generator=random)
    actions = states[:, :1] + 0.1 * noise * torch.randn(size, 1, generator=random)
    moved = actions + (0.1 + error) * torch.randn(size, 1, generator=random)
    following = torch.cat([states[:, :1] + moved, states[:, 1:]], 1)
    return Transitions.create(states, actions, states[:, 0], following, torch.zeros(size))


@pytest.fixture(scope="module")
def fitted() -> Residuals:
    return Residuals(rows(5_000, 0))


def test_deviations_are_in_units_of_the_real_noise(fitted):
    real = rows(2_000, 1)
    assert float(fitted.deviations("actions", real).square().mean()) == pytest.approx(1, abs=0.15)
    assert fitted.ratio("actions", real, rows(2_000, 2)) == pytest.approx(1, abs=0.1)
    assert fitted.ratio("actions", rows(2_000, 3, noise=3), real) == pytest.approx(3, abs=0.4)
    assert fitted.ratio("outcomes", rows(2_000, 4, error=0.4), real) > 3


def test_a_bad_tail_counts_as_much_as_a_bad_middle(fitted):
    real, batch = rows(2_000, 1), rows(2_000, 2)
    wrong = torch.where(torch.arange(2_000) % 5 == 0, 3.0, 0.0)
    assert fitted.ratio("actions", batch.where(actions=batch.actions + wrong[:, None]), real) > 5


def test_columns_that_never_change_are_left_out(fitted):
    batch, real = rows(2_000, 2), rows(2_000, 1)
    rounded = batch.next_observations + torch.tensor([0.0, 1e-5])
    assert fitted.ratio("outcomes", batch.where(next_observations=rounded), real) == pytest.approx(1, abs=0.2)


def test_the_fit_repeats(monkeypatch):
    monkeypatch.setattr(residuals, "UPDATES", 5)
    first, second = (Residuals(rows(300, 0)).deviations("actions", rows(10, 1)) for _ in range(2))
    assert torch.equal(first, second)
