"""What a learner and a generator declare of a run: phases, cadences, shares, budgets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from o2o_diffusion.types import Source


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
