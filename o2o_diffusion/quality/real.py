"""The real rows that generated ones are held against: which of them the generator was trained on, which not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.types import Episode, Transitions

INTERVALS = 4, 10
"""At least every tenth episode is held out where nothing else is given, at most every fourth (a default of ours)."""


@dataclass(frozen=True, eq=False)
class Real:
    """Real rows of one label: those the generator was trained on, and others, best of other episodes, in order."""

    held_out: Transitions
    training: Transitions

    @classmethod
    def split(cls, episodes: Sequence[Episode], rows: int) -> Real:
        """Every k-th episode held out: about `rows` rows, and between a tenth and a quarter of all.

        Raises InputError for a single episode.
        """
        if len(episodes) < 2:
            raise InputError("one episode can't be split into rows to compare with and others; give held-out rows")
        interval = min(max(sum(map(len, episodes)) // rows, INTERVALS[0]), INTERVALS[1])
        chosen = range(interval - 1, len(episodes), interval) or [len(episodes) - 1]
        others = [number for number in range(len(episodes)) if number not in chosen]
        return cls(*(transitions([episodes[number] for number in part]) for part in (chosen, others)))


def transitions(episodes: Sequence[Episode]) -> Transitions:
    """All transitions of `episodes`, in their order."""
    return Transitions.cat([episode.transitions() for episode in episodes])


def draw(batch: Transitions, size: int, seed: int) -> Transitions:
    """At most `size` random rows, in their order."""
    chosen = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:size]
    return batch[chosen.sort().values]
