"""Labels: rules of rewards and terminations are recovered from a few hundred rare rows, where there are any."""

import torch
from torch import Tensor

from o2o_diffusion.generators.labels import Labels


def maze(size: int, seed: int = 0, num_goals: int = 40) -> dict[str, Tensor]:
    """[goal, velocity, position]: reward 1 and the end within 0.3 of the goal, where no step starts."""
    g = torch.Generator().manual_seed(seed)
    goals = (4 * torch.rand(num_goals, 2, generator=g))[torch.randint(num_goals, (size,), generator=g)]
    velocities, positions = torch.randn(size, 2, generator=g), 4 * torch.rand(size, 2, generator=g)
    starts = positions + torch.where(((positions - goals).norm(dim=1) < 0.3)[:, None], 5.0, 0.0)
    ended = at_goal(torch.cat([goals, velocities, positions], 1)).float()[:, None]
    states, next_states = (torch.cat([goals, v, x], 1) for v, x in ((-velocities, starts), (velocities, positions)))
    return {"observations": states, "next_observations": next_states, "rewards": ended, "terminations": ended}


def at_goal(states: Tensor) -> Tensor:
    return (states[:, 4:] - states[:, :2]).norm(dim=1) < 0.3


def test_the_distance_to_the_goal_is_found_and_labels_both():
    labels, fields = Labels(6), maze(20_000)
    labels.fit(fields, is_sparse=True)
    new = maze(20_000, seed=1, num_goals=500)["next_observations"]
    found, true = labels(new), at_goal(new)
    assert true.sum() > 300
    claimed = found[:, 0] == 1
    assert (claimed & true).sum() / true.sum() > 0.97 and (claimed & true).sum() / claimed.sum() > 0.97
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(labels.starts_ended(new), claimed)


def test_limits_of_single_entries_are_found_and_dense_rewards_are_left_to_the_denoiser():
    labels, g = Labels(3), torch.Generator().manual_seed(0)
    states, next_states = torch.randn(2, 10_000, 3, generator=g)
    states[:, 0], rule = states[:, 0].clamp(-1, 1), lambda s: (s[:, 0] < -2) | (s[:, 1] > 2.2)
    fields = {"observations": states, "next_observations": next_states, "rewards": torch.randn(10_000, 1, generator=g)}
    labels.fit(fields | {"terminations": rule(next_states).float()[:, None]}, is_sparse=False)
    new = torch.randn(10_000, 3, generator=g)
    assert ((labels(new)[:, 0] == 1) == rule(new)).float().mean() > 0.998
    assert labels(new)[:, 1].isnan().all()


def test_outcomes_by_chance_are_left_to_the_denoiser():
    labels, fields = Labels(6), maze(2_000)
    shuffled = fields["terminations"][torch.randperm(2_000, generator=torch.Generator().manual_seed(0))]
    labels.fit(fields | {"terminations": shuffled, "rewards": shuffled}, is_sparse=True)
    assert labels(fields["next_observations"]).isnan().all()
    assert not labels.starts_ended(fields["observations"]).any()


def test_data_without_endings_give_none():
    labels, fields = Labels(6), maze(500)
    zeros = torch.zeros(500, 1)
    labels.fit(fields | {"terminations": zeros, "rewards": fields["observations"][:, :1]}, is_sparse=False)
    assert torch.equal(labels(fields["next_observations"])[:, 0], zeros[:, 0])


def test_a_saved_tree_labels_the_same_rows():
    labels, other = Labels(6), Labels(6)
    labels.fit(maze(5_000), is_sparse=True)
    other.load_state_dict(labels.state_dict())
    new = maze(1_000, seed=2)["next_observations"]
    assert torch.equal(labels(new), other(new)) and labels(new)[:, 0].sum() > 0
