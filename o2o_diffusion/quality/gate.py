"""Refresh gate: reject generated rows if a classifier distinguishes them too well from real rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from o2o_diffusion.distributed import broadcast, rank
from o2o_diffusion.quality.two_sample import auc
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Gate
from o2o_diffusion.types import Source, Transitions

ROWS = 2_000
"""Maximum numbers of generated and of real rows for the classifier."""


@dataclass(frozen=True)
class Verdict:
    """Decision on generated rows: whether to use them, and how many of the `asked_rows` are valid (`rows`)."""

    accepted: bool
    rows: int
    asked_rows: int
    auc: float
    max_auc: float

    def __str__(self) -> str:
        reason = f"a classifier distinguishes its rows from real ones with AUC {self.auc:.3f}"
        return f"{'accepted' if self.accepted else 'refused'}: {reason} (limit {self.max_auc})"


def judge(batches: Mapping[Source, Transitions], asked_rows: int, replay: Replay, gate: Gate) -> Verdict:
    """Judge generated rows on the main process and broadcast the verdict; an open gate (limit 1) reports AUC 0.5."""
    rows = sum(len(batch) for batch in batches.values())
    if not gate.measures:
        return Verdict(True, rows, asked_rows, 0.5, gate.max_auc)
    measured = worst_auc(batches, replay) if rank() == 0 else 0.5
    worst = float(broadcast(torch.tensor(measured, dtype=torch.float64, device=replay.device)))
    return Verdict(worst <= gate.max_auc, rows, asked_rows, worst, gate.max_auc)


def aucs(generated: Mapping[Source, Transitions], replay: Replay, rows: int = ROWS) -> dict[Source, float]:
    """Two-sample AUC of at most `rows` generated rows against real rows of their label, for labels with real rows.

    Uses the first generated rows (independent draws) and evenly spaced real rows. The AUC is 1 if no generated row is
    finite.
    """
    found = {}
    for source, batch in generated.items():
        pool = replay.pools[source.real]
        if len(pool):
            evenly = torch.linspace(0, len(pool) - 1, min(len(pool), rows), device=batch.rewards.device).long()
            flat = [replay.spec.flatten(part).float().cpu() for part in (batch[:rows], pool[evenly])]
            found[source] = auc(*flat) if len(batch) else 1.0
    return found


def worst_auc(generated: Mapping[Source, Transitions], replay: Replay) -> float:
    """Highest AUC over labels; 0.5 if no label has real rows."""
    return max(aucs(generated, replay).values(), default=0.5)
