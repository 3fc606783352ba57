"""Bounds: clipped entries and columns of few values come back exactly."""

import torch

from o2o_diffusion.generators.bounds import PUSH, Bounds


def clipped(size: int = 400) -> torch.Tensor:
    """A normal column clipped to [-1, 1], one that is not, a sign, and a constant."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(size, 2, generator=g)
    return torch.cat([normal[:, :1].clamp(-1, 1), normal[:, 1:], normal[:, 1:].sign(), torch.full((size, 1), 3.0)], 1)


def test_entries_at_a_bound_are_moved_outward_and_clamped_back():
    rows, bounds = clipped(), Bounds(4)
    bounds.fit([rows, rows[:0]])
    outward, at_bound = bounds.outward(rows), rows[:, 0].abs() == 1
    assert at_bound.float().mean() > 0.2
    gap = outward[at_bound, 0].abs().amin() - 1
    torch.testing.assert_close(gap, PUSH * rows[:, 0].std(correction=0))
    assert torch.equal(outward[~at_bound, 0], rows[~at_bound, 0]) and torch.equal(outward[:, 1:], rows[:, 1:])
    assert torch.equal(bounds.inside(outward, slice(0, 4), 0), rows)


def test_entries_between_few_values_become_the_nearest():
    bounds = Bounds(4)
    bounds.fit([clipped(), clipped(0)])
    rows = torch.tensor([[0.5, 0.1, -0.2, 9.0], [-0.5, 0.1, 0.4, 0.0]])
    assert bounds.inside(rows, slice(0, 4), 1).tolist() == torch.tensor([[0.5, 0.1, -1, 3], [-0.5, 0.1, 1, 3]]).tolist()


def test_without_push_nothing_moves():
    bounds = Bounds(4)
    bounds.fit([clipped(), clipped(0)], push=False)
    assert torch.equal(bounds.outward(clipped()), clipped())
