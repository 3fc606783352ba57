"""The whole contract between the loop and its components, on one page."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, GeneratedShare, Phase, Shares
from o2o_diffusion.types import Episode, Metrics, Source, Transitions


class Agent(Protocol):
    """The narrow waist: what others may ask of a learner. Observations are raw, actions in [-1, 1]."""

    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """[B, observation_dim] -> [B, action_dim]; deterministic for evaluation, otherwise exploring."""
        ...

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B] estimated returns."""
        ...

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], differentiable in `actions`; deterministic actors raise TypeError."""
        ...


class Component(Protocol):
    """Every component can be saved and restored; `state_dict` holds tensors, numbers, strings, lists and dicts only."""

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        ...


class Generator(Component, Protocol):
    """Makes transitions. The loop drives a refresh as it drives a learner, one optimiser step at a time."""

    generated: GeneratedShare
    num_updates: int  # optimiser steps of the next refresh
    num_samples: int  # rows to draw after a refresh, split by `generated.online`; 0 for none
    refresh_interval: int  # environment steps between refreshes
    first_refresh: int  # online rows before the first one
    max_auc: float  # a refresh whose rows a classifier tells from real ones with a higher AUC is not used

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Prepare `num_updates` steps on what the replay holds now."""
        ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """One optimiser step."""
        ...

    def sample(
        self,
        num_samples: int,
        *,
        source: Source = Source.GENERATED_ONLINE,
        replay: Replay | None = None,
        agent: Agent | None = None,
    ) -> Transitions:
        """`num_samples` transitions with raw rewards, labelled `source`."""
        ...


class Sampler(Component, Protocol):
    """Draws batches."""

    def begin_phase(self, shares: Shares) -> None:
        """Draw by `shares` from now on, except where the user's settings say otherwise."""
        ...

    def sample(self, replay: Replay, batch_size: int) -> Transitions:
        """A batch with the exact share of each pool over time, shuffled; rewards are raw."""
        ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Called once before each draw: density ratios, priorities."""
        ...


class Learner(Agent, Component, Protocol):
    """Improves a policy from batches."""

    batch_size: int

    def update(self, batch: Transitions) -> Metrics:
        """One update; `batch.rewards` are on the learner's scale."""
        ...

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """What the learner wants done with `budget`."""
        ...

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """A phase begins."""
        ...

    def begin_episode(self) -> None:
        """The environment was reset."""
        ...

    def end_episode(self, episode: Episode) -> None:
        """An episode ended and is in the replay, with its returns."""
        ...
