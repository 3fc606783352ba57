"""Real rows to compare generated rows with, split into training and held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from o2o_diffusion.replay import Replay
from o2o_diffusion.types import REAL, Episode, Source, Transitions, TransitionSpec

MIN_ROWS = 100
"""Fewest rows of a kind that are compared."""
SMALLEST_CHANGE = 1e-3
"""Standard deviation of s' - s, relative to that of s, of a column that does not change: a goal, or rounding."""
COPY_NOISE = 0.03
"""Noise of copies, in standard deviations of a column."""


@dataclass(frozen=True, eq=False)
class RealData:
    """Real rows of one label, in order: held-out rows, and the training rows of generators.

    `known` are rows of either label that span the data's range (None: the training rows). If `seen`, generators were
    trained on the held-out rows too.
    """

    held_out: Transitions
    training: Transitions
    known: Transitions | None = None
    seen: bool = False

    @property
    def limits(self) -> Tensor:
        """[2, row_dim] smallest and largest values of the data."""
        rows = self.training if self.known is None else self.known
        flat = TransitionSpec(rows.observations.shape[1], rows.actions.shape[1]).flatten(rows)
        return torch.stack([flat.amin(0), flat.amax(0)])

    @classmethod
    def of(cls, replay: Replay, source: Source) -> RealData | None:
        """Real rows on the CPU with the label of `source`, or with the other label if there are fewer than 100.

        If fewer than 100 rows are held out, every other row is used as if it were. None if there are no rows.
        """
        training, held_out = (replay.part(held_out=choice) for choice in (False, True))
        own, other = source.real, REAL[1 - source.real]
        label = own if len(replay.pools[own]) >= min(MIN_ROWS, len(replay.pools[other])) else other
        if not len(replay.pools[label]):
            return None
        known = Transitions.cat([training.pools[source].all() for source in REAL]).to("cpu")
        if len(held_out.pools[label]) >= MIN_ROWS:
            return cls(held_out.pools[label].all().to("cpu"), training.pools[label].all().to("cpu"), known)
        rows = replay.pools[label].all().to("cpu")
        return cls(rows[::2], rows[1::2], known, seen=True)


def transitions(episodes: Sequence[Episode]) -> Transitions:
    """All transitions of `episodes`, in order."""
    return Transitions.cat([episode.transitions() for episode in episodes])


def moving(batch: Transitions) -> Tensor:
    """[observation_dim] bool: the columns of observations that change within an episode."""
    return (batch.next_observations - batch.observations).std(0) > SMALLEST_CHANGE * batch.observations.std(0)


def draw(batch: Transitions, size: int, seed: int) -> Transitions:
    """At most `size` random rows, in order."""
    chosen = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:size]
    return batch[chosen.sort().values]


def copies(batch: Transitions, seed: int, noise: float = COPY_NOISE) -> Transitions:
    """The rows of `batch` with a little noise: a generator that has memorized its data, as a control."""
    random = torch.Generator().manual_seed(seed)

    def near(values: Tensor) -> Tensor:
        return values + noise * values.std(0) * torch.randn(values.shape, generator=random)

    fields = ("observations", "actions", "rewards", "next_observations")
    noisy = {name: near(getattr(batch, name)) for name in fields}
    return batch.where(**noisy | {"actions": noisy["actions"].clamp(-1, 1)})
