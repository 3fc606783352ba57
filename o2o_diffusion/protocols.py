"""The contract between the loop and its components.

Construction. A YAML file names a class as its `target`; the class has a nested frozen dataclass `Config` and is built
as `target(config, spec, seed=seed, device=device)`. `spec` has the dimensions, the environment the policy acts in and
the environment of the data.

Scale. Stores, files and generators hold raw rewards. Only `Replay.scaled` transforms rewards and sets `discounts`.

Processes. Every process holds the same replay and makes the same draws; `shard` keeps this process's part of a draw.
Noise comes from the component's own `ShardedRng`: N processes together draw the same numbers as one. Only the main
process steps the environment.

Axes. A batch is [B, ...]; K stacked seeds are [K, B, ...]. Ensembles are reduced over axis -2, batches over axis -1. A
loss is [] for one seed and [K] for K seeds, and the optimizer's step sums it. Metrics are detached, on device; metrics
with names ending in "loss" must be finite.

`replay` and `agent` are never None: if there is none, an empty replay or `NoAgent` is passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from o2o_diffusion.decision import Circumstances, Decision
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.schedule import Budget, GeneratedShare, Phase, Refresh, Shares
from o2o_diffusion.types import Episode, Metrics, Source, Transitions


class Component(Protocol):
    """An object with a saved state: nested dicts and lists of tensors, numbers, strings and None."""

    def state_dict(self) -> dict[str, Any]:
        """The complete state, sufficient for an exact resume."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; raises ValueError if it belongs to another kind of component."""
        ...


class Agent(Protocol):
    """The interface of a learner to other components. Observations are raw, actions in [-1, 1]."""

    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """[B, observation_dim] -> [B, action_dim]; stateless; exploration requires `rng`."""
        ...

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B] estimated returns, differentiable in both arguments."""
        ...

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B] log-density, differentiable in `actions`; raises TypeError if the policy is deterministic."""
        ...


class Learner(Agent, Component, Protocol):
    """Improves a policy from batches."""

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """Updates, steps, cadence, shares and batch size of each phase; raises InputError if `budget` is too small."""
        ...

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase."""
        ...

    def update(self, batch: Transitions) -> Metrics:
        """Run one update on this process's rows of a scaled batch."""
        ...

    def begin_episode(self) -> None:
        """Called after the environment is reset."""
        ...

    def end_episode(self, episode: Episode) -> None:
        """Called after an episode and its returns are stored in the replay."""
        ...


class Sampler(Component, Protocol):
    """Draws batches."""

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Update density ratios or priorities; called once before every draw."""
        ...

    def sample(self, replay: Replay, shares: Shares, batch_size: int) -> Draw:
        """Draw the rows of a batch, the same on every process; the user's settings override `shares`."""
        ...


class Generator(Component, Protocol):
    """Generates transitions. The loop runs a refresh like a learner's training, one optimizer step at a time."""

    def share(self, replay: Replay) -> GeneratedShare:
        """The share of generated rows in a batch."""
        ...

    def next_refresh(self, replay: Replay) -> Refresh:
        """Time, updates and rows of the next refresh, and the gate for its rows.

        The number of rows returned for an empty replay is the capacity of the generated pools.
        """
        ...

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Prepare a refresh on the rows currently in the replay."""
        ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Run one optimizer step."""
        ...

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Generate at most `num_samples` raw transitions labeled `source`, the same on every process."""
        ...

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        """Replace the rows marked as generated (`batch.is_generated`) in a raw batch with generated rows.

        Called with this process's rows, only if `share` has `at_batch_time`, and only while the gate accepts. Draw
        noise for the whole batch and keep the marked rows, so that N processes generate the same rows as one. The
        returns of these rows become -inf.
        """
        ...


class PretrainedGenerator(Generator, Protocol):
    """A generator that can be saved to a folder."""

    def save_pretrained(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Save everything needed for sampling, atomically; `provenance` describes the training data."""
        ...


@runtime_checkable
class DecidingGenerator(Generator, Protocol):
    """A generator that decides by what is known of a run whether to generate; `decision` is shown in the plan."""

    decision: Decision

    def decide(self, known: Circumstances) -> Decision:
        """Decide before the run and before any other call."""
        ...

    def reconsider(self, policy_return: float) -> Decision:
        """Decide again with the mean return of the pretrained policy, before the first environment step."""
        ...


class Primitives(Component, Protocol):
    """Combines `length` environment actions into one learner action; wraps the task, invisibly to other components."""

    length: int
    action_dim: int
    num_updates: int

    def update(self, replay: Replay) -> Metrics:
        """Run one optimizer step on windows of `length` rows."""
        ...

    def encode(self, windows: Transitions) -> Tensor:
        """Encode windows [B, length, ...] as learner actions [B, action_dim]."""
        ...

    def decode(self, observations: Tensor, actions: Tensor, step: int) -> Tensor:
        """Decode learner actions to environment actions [B, .] at `step` of a primitive."""
        ...
