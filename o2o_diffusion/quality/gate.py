"""The check that a refresh must pass before its rows are drawn: can a classifier tell them from real ones?"""

from collections.abc import Mapping

import torch

from o2o_diffusion.data.replay import Replay
from o2o_diffusion.quality.two_sample import auc
from o2o_diffusion.types import Source, Transitions

REAL = {Source.GENERATED_OFFLINE: Source.OFFLINE, Source.GENERATED_ONLINE: Source.ONLINE}
ROWS = 2_000
"""Rows of either kind that the classifier sees, a default of ours."""


def worst_auc(generated: Mapping[Source, Transitions], replay: Replay) -> float:
    """The highest two-sample AUC of generated rows against the real rows of their label, over labels.

    Generated rows are independent draws, so the first are as good as any; real rows are taken evenly from their pool.
    1 when a label has no rows left, because none was finite; 0.5 when no label has real rows to compare with.
    """
    if any(len(batch) == 0 for batch in generated.values()):
        return 1.0
    scores = [0.5]
    for source, batch in generated.items():
        pool = replay.pools[REAL[source]]
        if len(pool):
            rows = torch.linspace(0, len(pool) - 1, min(len(pool), ROWS), device=replay.memory["rewards"].device).long()
            flat = [replay.spec.flatten(part).float().cpu() for part in (batch[:ROWS], pool[rows])]
            scores.append(auc(*flat))
    return max(scores)
