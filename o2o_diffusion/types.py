"""The data every component exchanges: transitions, episodes, and the columns of a flat row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Detached scalars on their device; only the logger fetches them, so that `update` never synchronises."""

UNKNOWN_RETURN = float("-inf")
"""Vacuous in `maximum(q, returns)`: rows without a return need no special case."""


class Source(IntEnum):
    """Where a transition comes from."""

    OFFLINE = 0
    ONLINE = 1
    GENERATED_OFFLINE = 2
    GENERATED_ONLINE = 3


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions; every field has the batch first.

    Shapes and conventions:
        observations, next_observations: [B, observation_dim] float32.
        actions: [B, action_dim], in [-1, 1]; the environment is rescaled, not the data.
        rewards: [B], raw in every store; the run's one affine transform is applied where a batch is drawn.
        terminations: [B], 1 only where the task ended, never at a time limit.
        returns: [B], discounted return-to-go of transformed rewards; -inf where unknown.
        weights: [B], importance weights; every loss multiplies by them.
        regularization: [B], multiplies conservatism and cloning terms only.
        rows: [B] int64, index in the pool the row was drawn from.
        sources: [B] int64, a `Source`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminations: Tensor
    returns: Tensor
    weights: Tensor
    regularization: Tensor
    rows: Tensor
    sources: Tensor

    @classmethod
    def create(
        cls,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        next_observations: Tensor,
        terminations: Tensor,
        *,
        source: Source = Source.OFFLINE,
        **known: Any,
    ) -> Transitions:
        """Transitions with neutral values for every field that is not known: weight 1, return -inf."""
        size, device = len(observations), observations.device
        neutral = {
            "returns": torch.full((size,), UNKNOWN_RETURN, device=device),
            "weights": torch.ones(size, device=device),
            "regularization": torch.ones(size, device=device),
            "rows": torch.arange(size, device=device),
            "sources": torch.full((size,), int(source), device=device),
        }
        return cls(observations, actions, rewards, next_observations, terminations, **(neutral | known))

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        return self.map(lambda field: field[rows])

    @property
    def continues(self) -> Tensor:
        """[B], 0 where the task ended: the factor of a bootstrapped value."""
        return 1.0 - self.terminations

    def map(self, function: Callable[[Tensor], Tensor]) -> Transitions:
        """The same transitions with `function` applied to every field."""
        return Transitions(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def where(self, **changes: Tensor) -> Transitions:
        """The same transitions with some fields replaced."""
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Transitions:
        """The same transitions on `device`."""
        return self.map(lambda field: field.to(device))

    @staticmethod
    def cat(batches: Sequence[Transitions]) -> Transitions:
        """One batch after another."""
        return Transitions(
            **{field.name: torch.cat([getattr(b, field.name) for b in batches]) for field in fields(Transitions)}
        )


@dataclass(frozen=True)
class RewardTransform:
    """The run's one affine transform of rewards, `scale * reward + bias`, applied where a batch is drawn."""

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, rewards):
        """`rewards` (tensor or array) on the learner's scale."""
        return self.scale * rewards + self.bias


@dataclass(frozen=True)
class Episode:
    """One episode, the unit of datasets.

    Shapes: observations [T+1, observation_dim], actions [T, action_dim] in [-1, 1], rewards [T] raw, all float32.
    `terminated` tells whether the task ended with the last step; otherwise the episode was truncated.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)

    def returns(self, transform: RewardTransform, discount: float, failure_reward: float | None = None) -> np.ndarray:
        """[T] discounted return-to-go of the transformed rewards; the only place where returns are computed.

        With `failure_reward` (raw), an episode in which every reward equals it is taken to fail for ever: its return
        is `transform(failure_reward) / (1 - discount)` at every step (Cal-QL's rule for sparse tasks).
        """
        rewards = transform(self.rewards.astype(np.float64))
        if failure_reward is not None and np.all(self.rewards == failure_reward):
            return np.full(len(self), transform(failure_reward) / (1.0 - discount), dtype=np.float32)
        returns = np.empty(len(self))
        following = 0.0
        for step in reversed(range(len(self))):
            following = rewards[step] + discount * following
            returns[step] = following
        return returns.astype(np.float32)

    def transitions(self, **known: Any) -> Transitions:
        """The episode's T transitions; only the last may carry a termination."""
        observations = torch.from_numpy(self.observations)
        terminations = torch.zeros(len(self))
        terminations[-1] = float(self.terminated)
        return Transitions.create(
            observations[:-1],
            torch.from_numpy(self.actions),
            torch.from_numpy(self.rewards),
            observations[1:],
            terminations,
            **known,
        )


@dataclass(frozen=True)
class EnvironmentSpec:
    """Which environment a dataset was recorded in, with its own keyword arguments and step limit."""

    id: Annotated[str, "id in Gymnasium's registry"]
    kwargs: Annotated[dict[str, Any], "keyword arguments of the environment"] = field(default_factory=dict)
    max_episode_steps: Annotated[int | None, "steps until an episode is truncated; null: the registered limit"] = None


@dataclass(frozen=True)
class TransitionSpec:
    """Dimensions of a task, and the one place that knows the column order of a flat row: [s, a, r, s', termination]."""

    observation_dim: int
    action_dim: int

    @property
    def row_dim(self) -> int:
        """Width of a flat row."""
        return 2 * self.observation_dim + self.action_dim + 2

    @property
    def columns(self) -> dict[str, slice]:
        """Where each field lies in a flat row."""
        widths = {
            "observations": self.observation_dim,
            "actions": self.action_dim,
            "rewards": 1,
            "next_observations": self.observation_dim,
            "terminations": 1,
        }
        columns, start = {}, 0
        for name, width in widths.items():
            columns[name] = slice(start, start + width)
            start += width
        return columns

    def flatten(self, batch: Transitions) -> Tensor:
        """[B, row_dim] rows of `batch`."""
        return torch.cat(
            [
                batch.observations,
                batch.actions,
                batch.rewards[:, None],
                batch.next_observations,
                batch.terminations[:, None],
            ],
            dim=1,
        )

    def unflatten(self, rows: Tensor, source: Source) -> Transitions:
        """Transitions of flat `rows` [B, row_dim]; returns are unknown, weights 1."""
        columns = {name: rows[:, where].contiguous() for name, where in self.columns.items()}
        columns |= {name: columns[name].squeeze(1) for name in ("rewards", "terminations")}
        return Transitions.create(**columns, source=source)
