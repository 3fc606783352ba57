"""Run schedules declared by components: phases, cadences, batch shares, refreshes, budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from o2o_diffusion.types import Source


@dataclass(frozen=True)
class Cadence:
    """`updates` updates per environment step, run every `every` steps, or at the end of each episode if it is 0."""

    updates: float = 1
    every: int = 1

    def due(self, step: int, episode_length: int | None = None) -> int:
        """Updates due after step `step` of the phase; `episode_length` is given if that step ended an episode."""
        if self.every and step % self.every:
            return 0
        span = self.every or episode_length or 0
        return math.floor(self.updates * step) - math.floor(self.updates * (step - span))


NEVER = Cadence(updates=0)


@dataclass(frozen=True)
class Gate:
    """Limits on what numbers of generated rows exceed those of real rows by; a refresh beyond one of them is refused.

    Numbers are of the rows of one label. The limits lie beyond measured default trainings and below rows that are wrong
    on purpose (docs/generators.md). With fewer than 100 rows, the numbers that need a classifier or a regression are
    left out, and judging costs nothing.
    """

    rows: Annotated[int, "generated rows per label to judge; 0: only refuse rows that are not finite", Ge(0)] = 2_000
    dropped: Annotated[float, "share of rows that are not finite", Ge(0)] = 0.05
    duplicates: Annotated[float, "share of rows that repeat another", Ge(0)] = 0.1
    outside_range: Annotated[float, "share of rows outside the data's range", Ge(0)] = 0.05
    at_limits: Annotated[float, "share of entries at the ends of the data's range", Ge(0)] = 0.1
    missed_endings: Annotated[float, "share of the rows that end an episode that are not marked as endings", Ge(0)] = (
        0.5
    )
    actions: Annotated[float, "deviation of actions given states, in those of real rows", Ge(0)] = 1.0
    outcomes: Annotated[float, "deviation of outcomes given states and actions, in those of real rows", Ge(0)] = 1.5
    auc: Annotated[float, "AUC of trees that tell generated from held-out rows", Ge(0)] = 0.45


OPEN = Gate(rows=0)


@dataclass(frozen=True)
class Refresh:
    """Timing of a generator's refreshes, training `updates` and sampled `rows` of each, and the gate for the rows.

    The first refresh is due at `first` online rows (0: before the learner's first update), later ones every `interval`
    environment steps (0: never). With neither updates nor rows, no refresh is due. With updates but no rows, the
    generator makes its rows at batch time (`Generator.augment`).
    """

    updates: int = 0
    rows: int = 0
    first: int = 0
    interval: int = 0
    gate: Gate = OPEN


@dataclass(frozen=True)
class GeneratedShare:
    """The share of generated rows in a batch, and the fraction `online` of them with the online label.

    With `replaces_offline`, generated rows replace all offline rows (EDIS). With `at_batch_time`, they are made from
    drawn real rows of the same label instead of drawn from a pool.
    """

    share: float = 0.0
    online: float = 1.0
    replaces_offline: bool = False
    at_batch_time: bool = False

    def counts(self, num_samples: int) -> dict[Source, int]:
        """Split `num_samples` rows by label; labels without rows are omitted."""
        online = round(num_samples * self.online)
        counts = {Source.GENERATED_OFFLINE: num_samples - online, Source.GENERATED_ONLINE: online}
        return {source: count for source, count in counts.items() if count}


@dataclass(frozen=True)
class Shares:
    """Batch composition: nonnegative shares of the four sources, summing to 1.

    With `whole_batches`, each batch comes from a single pool, chosen with these probabilities. With `offline_fills`,
    offline rows fill the online share while online rows are few, even if their own share is 0. `at_batch_time`: see
    `GeneratedShare`.
    """

    offline: float = 0.0
    online: float = 0.0
    generated_offline: float = 0.0
    generated_online: float = 0.0
    whole_batches: bool = False
    offline_fills: bool = False
    at_batch_time: bool = False

    def with_generated(self, generated: GeneratedShare) -> Shares:
        """Add generated rows with share r: scale the real shares by 1 - r and split r by label."""
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
            at_batch_time=generated.at_batch_time,
        )

    def of(self, source: Source) -> float:
        """The share of one source."""
        return getattr(self, source.name.lower())


OFFLINE_ONLY = Shares(offline=1.0)


@dataclass(frozen=True)
class Budget:
    """Total updates and environment steps of a run; `pretrained` if its learner was pretrained in another run."""

    pretrain_updates: int
    online_steps: int
    warmup_steps: int = 0
    updates_per_step: float = 1
    pretrained: bool = False

    def cadence(self, block_steps: int = 1) -> Cadence:
        """Cadence of `updates_per_step`, run in blocks every `block_steps` steps (0: at the end of each episode).

        Blocks are no longer than the fine-tuning phase, so that short runs are also trained.
        """
        longest = max(1, self.online_steps - self.warmup_steps)
        return Cadence(self.updates_per_step, every=min(block_steps, longest))


@dataclass(frozen=True)
class Phase:
    """A phase of a run, declared by the learner, so that the loop never branches on its name.

    `updates` are due at the start; `cadence` adds more during the `env_steps` environment steps. With `learns=False`,
    nothing is trained; with `random_actions`, actions are uniform instead of the policy's; with `fresh`, the phase
    starts with a new learner.
    """

    name: str
    updates: int = 0
    env_steps: int = 0
    cadence: Cadence = NEVER
    shares: Shares = OFFLINE_ONLY
    batch_size: int = 256
    learns: bool = True
    random_actions: bool = False
    fresh: bool = False

    @property
    def is_online(self) -> bool:
        """Whether this phase steps the environment."""
        return self.env_steps > 0
