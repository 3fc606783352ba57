"""The whole contract between the loop and its components, on one page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from o2o_diffusion.data.replay import Replay
from o2o_diffusion.types import Episode, Metrics, Source, Transitions


@dataclass(frozen=True)
class Cadence:
    """How many updates are owed for the environment steps taken: `updates` after every `steps` steps or every episode.

    `unit` is "step" or "episode"; after an episode of T steps `updates * T` updates are owed.
    """

    updates: int = 1
    steps: int = 1
    unit: str = "step"

    def owed(self, env_steps: int, episode_length: int | None) -> int:
        """Updates owed after the phase's `env_steps`-th step; `episode_length` is given when it ended an episode."""
        if self.unit == "episode":
            return self.updates * (episode_length or 0)
        return self.updates if env_steps % self.steps == 0 else 0


def per_step(updates: int) -> Cadence:
    """`updates` updates after every environment step."""
    return Cadence(updates=updates)


def per_block(steps: int, updates: int) -> Cadence:
    """`updates` updates after every `steps` environment steps."""
    return Cadence(updates=updates, steps=steps)


def per_episode(updates_per_step: int) -> Cadence:
    """After every episode, `updates_per_step` updates for each of its steps."""
    return Cadence(updates=updates_per_step, unit="episode")


@dataclass(frozen=True)
class GeneratedShare:
    """What a generator wants of a batch: `share` of its rows, `online` of which carry the online label.

    With `replaces_offline`, generated rows take the place of offline rows altogether (EDIS).
    """

    share: float = 0.0
    online: float = 1.0
    replaces_offline: bool = False

    def counts(self, num_samples: int) -> dict[Source, int]:
        """How many of `num_samples` rows to draw with each label; labels of which there are none are left out."""
        online = round(num_samples * self.online)
        counts = {Source.GENERATED_OFFLINE: num_samples - online, Source.GENERATED_ONLINE: online}
        return {source: count for source, count in counts.items() if count}


@dataclass(frozen=True)
class Shares:
    """How a batch is composed: non-negative shares of the four pools, summing to 1.

    With `whole_batches`, a batch comes from one pool, drawn with these probabilities. With `offline_fills`, offline
    rows stand in for online ones while there are few of those, even where they have no share in the end.
    """

    offline: float = 0.0
    online: float = 0.0
    generated_offline: float = 0.0
    generated_online: float = 0.0
    whole_batches: bool = False
    offline_fills: bool = False

    def with_generated(self, generated: GeneratedShare) -> Shares:
        """These real shares with room made for generated rows: (1 - r) real, r generated, split by label."""
        real, share = self, generated.share
        if generated.replaces_offline and share > 0:
            real = replace(self, offline=0.0, online=1.0)
        return replace(
            real,
            offline=(1 - share) * real.offline,
            online=(1 - share) * real.online,
            generated_offline=share * (1 - generated.online),
            generated_online=share * generated.online,
            offline_fills=self.offline > 0,
        )

    def of(self, source: Source) -> float:
        """The share of one pool."""
        return getattr(self, source.name.lower())


@dataclass(frozen=True)
class Budget:
    """What a run may spend, in updates and environment steps."""

    pretrain_updates: int
    online_steps: int
    warmup_steps: int = 0
    updates_per_step: int = 1

    def blocks(self, steps: int) -> Cadence:
        """After every `steps` steps of fine-tuning, or after all where there are fewer, the updates owed for them."""
        steps = max(1, min(steps, self.online_steps - self.warmup_steps))
        return per_block(steps, steps * self.updates_per_step)


@dataclass(frozen=True)
class Phase:
    """A stretch of a run that a learner declares, so that the loop needs no branch on its name.

    `updates` are owed at the beginning; `cadence` adds to them while `env_steps` are taken. A phase that does not
    `learn` only acts. With `fresh`, the learner is built anew at the beginning.
    """

    name: str
    updates: int = 0
    env_steps: int = 0
    cadence: Cadence = Cadence(updates=0)
    shares: Shares = Shares(offline=1.0)
    learns: bool = True
    fresh: bool = False


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
