"""Sparse rewards and terminations as a function of the next observation: the rule that the real rows follow.

Environments end an episode, or reward success, by comparing entries of the next state, or its distance to the goal,
with a limit. A decision tree finds such limits from a few hundred rare rows, where a denoiser misses them.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

MAX_LEAVES = 64
MAX_ROWS = 200_000
"""Rows that a tree is fitted to; the first ones of a random order."""
MIN_AGREEMENT = 0.95
"""Least recall and precision of every outcome on held-out rows with which a tree is used."""
MAX_STARTS = 1e-3
"""Share of real rows that may start in a state that the rule calls ended, if new rows must not."""


class Labels(nn.Module):
    """Outcomes (termination, sparse reward) of next observations [B, D], as a tree over their entries and distances.

    Distances are those of adjacent entries to as many adjacent goal entries, which never change within an episode but
    differ between episodes. Every fifth row is held out; if recall or precision of an outcome is below
    `MIN_AGREEMENT` there, rewards are left to the denoiser, then terminations too.
    """

    goal: Tensor
    splits: Tensor
    limits: Tensor
    branches: Tensor
    leaves: Tensor
    outcomes: Tensor
    keeps_starts: Tensor

    def __init__(self, dim: int):
        super().__init__()
        size = 2 * MAX_LEAVES - 1
        self.register_buffer("goal", torch.zeros(dim, dtype=torch.bool))
        self.register_buffer("splits", torch.zeros(size, dtype=torch.int64))  # feature of each node
        self.register_buffer("limits", torch.zeros(size))  # at most this: left child
        self.register_buffer("branches", torch.zeros(size, 2, dtype=torch.int64))  # a leaf is its own child
        self.register_buffer("leaves", torch.zeros(size, dtype=torch.int64))  # outcome of each node
        self.register_buffer("outcomes", torch.full((MAX_LEAVES, 2), torch.nan))  # NaN: left to the denoiser
        self.register_buffer("keeps_starts", torch.tensor(True))

    @torch.no_grad()
    def fit(self, fields: Mapping[str, Tensor], *, is_sparse: bool) -> None:
        """Find the rule of real rows with `fields` ([N, width] each); rewards are left out unless `is_sparse`."""
        self.outcomes.fill_(torch.nan)
        self.keeps_starts.fill_(True)
        states, next_states = fields["observations"], fields["next_observations"]
        self.goal.copy_((states == next_states).all(0) & (states != states[:1]).any(0))
        order = torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:MAX_ROWS].to(states.device)
        features = self.features(next_states[order])
        rewards = fields["rewards"] if is_sparse else torch.full_like(fields["rewards"], torch.nan)
        pairs = torch.cat([fields["terminations"], rewards], dim=1)[order]
        for candidate in (pairs, pairs.where(torch.tensor([True, False], device=pairs.device), torch.nan)):
            outcomes, numbers = candidate.nan_to_num(0.0).unique(dim=0, return_inverse=True)
            if len(outcomes) <= MAX_LEAVES and _agreement(features, numbers) >= MIN_AGREEMENT:
                self._store(_tree(features, numbers), candidate[0].isnan(), outcomes)
                ended = self(states[order])[:, 0] > 0.5
                self.keeps_starts.fill_(bool(ended.float().mean() > MAX_STARTS))
                return

    def forward(self, observations: Tensor) -> Tensor:
        """[B, 2] termination and reward of steps into `observations`, NaN where they don't follow a rule."""
        features = self.features(observations)
        nodes = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        rows = torch.arange(len(features), device=features.device)
        for _ in range(MAX_LEAVES):
            is_right = features[rows, self.splits[nodes]] > self.limits[nodes]
            following = self.branches[nodes, is_right.long()]
            if torch.equal(following, nodes):
                break
            nodes = following
        return self.outcomes[self.leaves[nodes]]

    def features(self, observations: Tensor) -> Tensor:
        """[B, features] entries, and distances of adjacent ones to each run of adjacent goal entries."""
        parts, start = [observations], 0
        for is_goal, run in groupby(self.goal.tolist()):
            stop = start + len(list(run))
            if is_goal:
                windows = observations.unfold(1, stop - start, 1)  # [B, first entry, width]
                parts.append((windows - observations[:, None, start:stop]).norm(dim=-1))
            start = stop
        return torch.cat(parts, dim=1)

    def starts_ended(self, observations: Tensor) -> Tensor:
        """[B] whether the rule calls the state ended that a step starts in, though no real step does."""
        return (self(observations)[:, 0] > 0.5) & ~self.keeps_starts

    def _store(self, tree: Any, is_open: Tensor, outcomes: Tensor) -> None:
        """Keep a fitted tree as tensors."""
        count, places = tree.node_count, torch.arange(tree.node_count)
        children = torch.tensor([tree.children_left.tolist(), tree.children_right.tolist()]).T
        children = torch.where(children < 0, places[:, None], children)
        self.branches[:count] = children
        self.splits[:count] = torch.tensor(tree.feature.tolist()).clamp(min=0)
        self.limits[:count] = torch.tensor(tree.threshold.tolist())
        self.leaves[:count] = torch.from_numpy(tree.value[:, 0].argmax(1))
        self.outcomes[: len(outcomes)] = torch.where(is_open, torch.nan, outcomes)


def _tree(features: Tensor, numbers: Tensor) -> Any:
    """The fitted tree of `features` [N, F] to outcomes [N], rare ones weighted like the others."""
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_leaf_nodes=MAX_LEAVES, class_weight="balanced", random_state=0)
    return tree.fit(features.cpu().numpy(), numbers.cpu().numpy()).tree_


def _agreement(features: Tensor, numbers: Tensor) -> float:
    """Least recall or precision of an outcome on every fifth row, of a tree fitted to the others."""
    held_out = torch.arange(len(numbers)) % 5 == 4
    known, seen = numbers[~held_out].unique(return_inverse=True)
    tree = _tree(features[~held_out], seen)
    found = tree.predict(features[held_out].cpu().numpy()).argmax(1)
    predicted, true = known[torch.from_numpy(found).reshape(-1).to(known.device)], numbers[held_out]
    scores: Sequence[float] = [
        float(((predicted == number) & (true == number)).sum() / max(int(part.sum()), 1))
        for number in true.unique()
        for part in (true == number, predicted == number)
    ]
    return min(scores, default=0.0)
