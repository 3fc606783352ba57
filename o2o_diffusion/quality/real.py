"""Real rows to compare generated rows with, split into training and held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.types import Episode, Transitions

INTERVALS = 4, 10
"""Bounds of the hold-out interval: every fourth to every tenth episode."""


@dataclass(frozen=True, eq=False)
class RealData:
    """Real rows of one label, in order: the generator's training rows and held-out rows, ideally of other episodes."""

    held_out: Transitions
    training: Transitions

    @classmethod
    def split(cls, episodes: Sequence[Episode], rows: int) -> RealData:
        """Hold out every k-th episode: about `rows` rows, between a tenth and a quarter of all episodes.

        Raises InputError if there is only one episode.
        """
        if len(episodes) < 2:
            raise InputError("one episode can't be split into rows to compare with and others; give held-out rows")
        interval = min(max(sum(map(len, episodes)) // rows, INTERVALS[0]), INTERVALS[1])
        chosen = range(interval - 1, len(episodes), interval) or [len(episodes) - 1]
        others = [number for number in range(len(episodes)) if number not in chosen]
        return cls(*(transitions([episodes[number] for number in part]) for part in (chosen, others)))


def transitions(episodes: Sequence[Episode]) -> Transitions:
    """All transitions of `episodes`, in order."""
    return Transitions.cat([episode.transitions() for episode in episodes])


def draw(batch: Transitions, size: int, seed: int) -> Transitions:
    """At most `size` random rows, in order."""
    chosen = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:size]
    return batch[chosen.sort().values]
