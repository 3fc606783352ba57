"""The check that a refresh must pass before its rows are drawn: can a classifier tell them from real ones?"""

from collections.abc import Mapping

import torch

from o2o_diffusion.quality.two_sample import auc
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions

REAL = {Source.GENERATED_OFFLINE: Source.OFFLINE, Source.GENERATED_ONLINE: Source.ONLINE}
ROWS = 2_000
"""Rows of either kind that the classifier sees, a default of ours."""


def aucs(generated: Mapping[Source, Transitions], replay: Replay, rows: int = ROWS) -> dict[Source, float]:
    """Two-sample AUC of at most `rows` generated rows against real rows of their label, for labels that have any.

    Generated rows are independent draws, so the first are as good as any; real rows are taken evenly from their pool.
    1 where no generated row is left, because none was finite.
    """
    found = {}
    for source, batch in generated.items():
        pool = replay.pools[REAL[source]]
        if len(pool):
            evenly = torch.linspace(0, len(pool) - 1, min(len(pool), rows), device=batch.rewards.device).long()
            flat = [replay.spec.flatten(part).float().cpu() for part in (batch[:rows], pool[evenly])]
            found[source] = auc(*flat) if len(batch) else 1.0
    return found


def worst_auc(generated: Mapping[Source, Transitions], replay: Replay) -> float:
    """The highest AUC over labels; 0.5 when no label has real rows to compare with."""
    return max(aucs(generated, replay).values(), default=0.5)
