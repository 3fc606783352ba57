"""Data types shared by all components: transitions, episodes, and the column layout of a flat row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Detached scalars on their device; only the logger copies them to the host, so `update` never synchronizes."""

UNKNOWN_RETURN = float("-inf")
"""Has no effect in `maximum(q, returns)`, so rows without a return need no special case."""


class Source(IntEnum):
    """Origin of a transition: real or generated, labeled offline or online."""

    OFFLINE = 0
    ONLINE = 1
    GENERATED_OFFLINE = 2
    GENERATED_ONLINE = 3

    @property
    def is_generated(self) -> bool:
        """Whether the transition was generated."""
        return self >= Source.GENERATED_OFFLINE

    @property
    def real(self) -> Source:
        """The real source with the same label."""
        return Source(self % 2)

    @property
    def generated(self) -> Source:
        """The generated source with the same label."""
        return Source(self % 2 + 2)

    @property
    def label(self) -> str:
        """ "offline" or "online"."""
        return self.real.name.lower()


REAL = (Source.OFFLINE, Source.ONLINE)
GENERATED = (Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE)


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions; the batch is the first axis of every field.

    Shapes and conventions (windows are [B, length, ...], K stacked seeds [K, B, ...]):
        observations, next_observations: [B, observation_dim] float32.
        actions: [B, action_dim], in [-1, 1]; the environment is rescaled, not the data.
        rewards: [B], raw until `Replay.scaled` applies the run's affine transform.
        terminations: [B], 1 only if the task ended, never at a time limit.
        returns: [B], discounted return-to-go of transformed rewards; -inf if unknown.
        next_actions: [B, action_dim], the action taken in the next observation; NaN if unknown or none.
        discounts: [B], discount x (1 - termination), multiplies the bootstrapped value; NaN until `Replay.scaled` sets
            it, so that a loss on raw rows is not finite.
        weights: [B], importance weights; every loss multiplies by them.
        regularization: [B], multiplies conservatism and cloning terms only.
        rows: [B] int64, index into the pool of the row.
        sources: [B] int64, a `Source`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminations: Tensor
    returns: Tensor
    next_actions: Tensor
    discounts: Tensor
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
        """Create transitions; fields not in `known` get neutral values, such as weight 1 and return -inf."""
        size, device = rewards.shape, observations.device
        neutral = {
            "returns": torch.full(size, UNKNOWN_RETURN, device=device),
            "next_actions": torch.full_like(actions, torch.nan),
            "discounts": torch.full(size, torch.nan, device=device),
            "weights": torch.ones(size, device=device),
            "regularization": torch.ones(size, device=device),
            "rows": torch.arange(len(observations), device=device),
            "sources": torch.full(size, int(source), device=device),
        }
        return cls(observations, actions, rewards, next_observations, terminations, **(neutral | known))

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, rows: Tensor | slice) -> Transitions:
        return self.map(lambda field: field[rows])

    @property
    def is_generated(self) -> Tensor:
        """[B] bool, whether each row was generated."""
        return self.sources >= Source.GENERATED_OFFLINE

    def map(self, function: Callable[[Tensor], Tensor]) -> Transitions:
        """Apply `function` to every field."""
        return Transitions(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def chunk(self, count: int) -> list[Transitions]:
        """Split into `count` consecutive parts of equal size, the batch being the last axis of the rewards."""
        axis = self.rewards.ndim - 1
        size = self.rewards.shape[axis] // count
        return [self.map(lambda field, n=number: field.narrow(axis, n * size, size)) for number in range(count)]

    def where(self, **changes: Tensor) -> Transitions:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)

    def with_rows(self, mask: Tensor, other: Transitions) -> Transitions:
        """Return a copy with the rows of `other` where `mask` [B] is true."""
        names = [field.name for field in fields(self)]
        return Transitions(**{name: _where(mask, getattr(other, name), getattr(self, name)) for name in names})

    def to(self, device: torch.device | str) -> Transitions:
        """Move every field to `device`."""
        return self.map(lambda field: field.to(device))

    @staticmethod
    def cat(batches: Sequence[Transitions]) -> Transitions:
        """Concatenate batches."""
        return Transitions._joined(torch.cat, batches)

    @staticmethod
    def stack(batches: Sequence[Transitions]) -> Transitions:
        """Stack batches of equal shape along a new first axis (K stacked seeds)."""
        return Transitions._joined(torch.stack, batches)

    @staticmethod
    def _joined(join: Callable[[list[Tensor]], Tensor], batches: Sequence[Transitions]) -> Transitions:
        names = [field.name for field in fields(Transitions)]
        return Transitions(**{name: join([getattr(batch, name) for batch in batches]) for name in names})


def _where(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """`torch.where` for a mask [B] and fields [B] or [B, width]."""
    return torch.where(mask[:, None] if chosen.ndim > mask.ndim else mask, chosen, other)


@dataclass(frozen=True)
class RewardTransform:
    """The run's affine reward transform, `scale * reward + bias`; applied only by `Replay`."""

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, rewards):
        """Transform `rewards` (tensor or array) to the learner's scale."""
        return self.scale * rewards + self.bias


@dataclass(frozen=True)
class Episode:
    """One episode, the unit of datasets.

    Shapes: observations [T+1, observation_dim], actions [T, action_dim] in [-1, 1], rewards [T] raw, all float32.
    `terminated` is true if the task ended at the last step; otherwise the episode was truncated.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)

    def returns(self, transform: RewardTransform, discount: float, failure_reward: float | None = None) -> np.ndarray:
        """[T] discounted return-to-go of the transformed rewards; the only place where returns are computed.

        An episode with every reward equal to `failure_reward` (raw) is treated as failing indefinitely: its return is
        `transform(failure_reward) / (1 - discount)` at every step (Cal-QL's rule for sparse tasks).
        """
        rewards = transform(self.rewards.astype(np.float64))
        if failure_reward is not None and np.all(self.rewards == failure_reward):
            return np.full(len(self), transform(failure_reward) / (1.0 - discount), dtype=np.float32)
        returns = np.empty(len(self))
        return_to_go = 0.0
        for step in reversed(range(len(self))):
            return_to_go = rewards[step] + discount * return_to_go
            returns[step] = return_to_go
        return returns.astype(np.float32)

    def transitions(self, **known: Any) -> Transitions:
        """The episode's T transitions; only the last can be a termination, and it has no next action."""
        observations = torch.from_numpy(self.observations)
        terminations = torch.zeros(len(self))
        terminations[-1] = float(self.terminated)
        return Transitions.create(
            observations[:-1],
            torch.from_numpy(self.actions),
            torch.from_numpy(self.rewards),
            observations[1:],
            terminations,
            next_actions=self.next_actions(),
            **known,
        )

    def next_actions(self) -> Tensor:
        """[T, action_dim], the action of the next step; NaN at the last one."""
        last = np.full_like(self.actions[:1], np.nan)
        return torch.from_numpy(np.concatenate([self.actions[1:], last]))


@dataclass(frozen=True)
class EnvironmentSpec:
    """Arguments for creating an environment: id, keyword arguments, step limit, observation fields, and physics."""

    id: Annotated[str, "id in Gymnasium's registry"]
    kwargs: Annotated[dict[str, Any], "keyword arguments of the environment"] = field(default_factory=dict)
    max_episode_steps: Annotated[int | None, "steps until an episode is truncated; null: the registered limit"] = None
    observation_keys: Annotated[tuple[str, ...], "fields of dict observations to flatten, in order"] = ()
    physics: Annotated[dict[str, float], "factors of the MuJoCo model's physics"] = field(default_factory=dict)


@dataclass(frozen=True)
class TransitionSpec:
    """Dimensions of a task, and the column order of a flat row: [s, a, r, s', termination].

    The policy acts in `environment`; the offline rows come from `data_environment`. Both are None if unknown, and
    comparing two specs ignores them.
    """

    observation_dim: int
    action_dim: int
    environment: EnvironmentSpec | None = field(default=None, compare=False)
    data_environment: EnvironmentSpec | None = field(default=None, compare=False)

    def environment_of(self, source: Source) -> EnvironmentSpec | None:
        """The environment with the dynamics of rows from `source`."""
        return self.data_environment if source.real is Source.OFFLINE else self.environment

    @property
    def row_dim(self) -> int:
        """Width of a flat row."""
        return 2 * self.observation_dim + self.action_dim + 2

    @property
    def columns(self) -> dict[str, slice]:
        """Columns of each field in a flat row."""
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
        """Convert `batch` to flat rows [B, row_dim]."""
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
        """Convert flat `rows` [B, row_dim] to transitions; returns are unknown, weights 1."""
        columns = {name: rows[:, where].contiguous() for name, where in self.columns.items()}
        columns |= {name: columns[name].squeeze(1) for name in ("rewards", "terminations")}
        return Transitions.create(**columns, source=source)
