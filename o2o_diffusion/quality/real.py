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

    `span` is the range of the data of both labels (None: of the training rows). If `seen`, generators were trained on
    the held-out rows too.
    """

    held_out: Transitions
    training: Transitions
    span: Tensor | None = None
    seen: bool = False

    @property
    def limits(self) -> Tensor:
        """[2, row_dim] smallest and largest values of the data."""
        return span(self.training) if self.span is None else self.span

    @classmethod
    def of(cls, replay: Replay, source: Source) -> RealData | None:
        """Real rows on the CPU with the label of `source`, or with the other label if there are fewer than 100.

        If fewer than 100 rows are held out, every other row is used as if it were. None if there are no rows.
        """
        own, other = source.real, REAL[1 - source.real]
        label = own if len(replay.pools[own]) >= min(MIN_ROWS, len(replay.pools[other])) else other
        pools = [pool for pool in (replay.offline, replay.online) if not pool.held_out.all()]  # nor empty
        if not pools:
            return None
        spans = torch.stack([span(pool.all()[~pool.held_out]) for pool in pools])
        limits = torch.stack([spans[:, 0].amin(0), spans[:, 1].amax(0)])
        rows, held_out = replay.pools[label].all().to("cpu"), replay.pools[label].held_out.cpu()
        if held_out.sum() >= MIN_ROWS:
            return cls(rows[held_out], rows[~held_out], limits)
        return cls(rows[::2], rows[1::2], limits, seen=True)


def transitions(episodes: Sequence[Episode]) -> Transitions:
    """All transitions of `episodes`, in order."""
    return Transitions.cat([episode.transitions() for episode in episodes])


def span(batch: Transitions) -> Tensor:
    """[2, row_dim] smallest and largest values of the rows, on the CPU."""
    flat = TransitionSpec(batch.observations.shape[1], batch.actions.shape[1]).flatten(batch)
    return torch.stack(flat.aminmax(dim=0)).cpu()


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
