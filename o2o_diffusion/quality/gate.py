"""The gate of a refresh: measures new rows against real rows that no generator was trained on, and decides on them."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from o2o_diffusion.distributed import broadcast, rank
from o2o_diffusion.quality.comparison import MIN_ROWS, compare
from o2o_diffusion.quality.measures import GATE_MEASURES, validity
from o2o_diffusion.quality.real import RealData
from o2o_diffusion.quality.verdict import CHECKS, Verdict
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Gate
from o2o_diffusion.types import GENERATED, Source, Transitions

KINDS = "generated", "floor"
Numbers = dict[str, dict[str, Any]]
"""Both kinds by name; the floor is the number of real rows."""


@torch.autocast("cpu", enabled=False)
def judge(batches: Mapping[Source, Transitions], asked: Mapping[Source, int], replay: Replay, gate: Gate) -> Verdict:
    """Judge generated rows, of which `asked` were asked for; the main process measures them and all get its verdict.

    An open gate (`rows` 0) and one without real rows to compare with only see whether rows were dropped.
    """
    labels = {source.label: numbers(batches[source], asked[source], replay, source, gate) for source in batches}
    rows = sum(len(batch) for batch in batches.values())
    return Verdict.of(_shared(labels, replay.device), gate, rows, sum(asked.values()))


def numbers(batch: Transitions, asked: int, replay: Replay, source: Source, gate: Gate) -> Numbers:
    """The numbers with a limit; with fewer than 100 rows of a kind, only those without classifier and regressions.

    Empty on all processes but the main one.
    """
    if rank() != 0 or not asked:
        return {}
    real = RealData.of(replay, source) if gate.rows and len(batch) else None
    if real is None:
        return {"dropped": {"generated": 1 - len(batch) / asked, "floor": 0.0}}
    enough = min(gate.rows, len(batch), len(real.held_out)) >= MIN_ROWS
    batch = batch.to("cpu")
    return compare(batch, real, rows=gate.rows, asked=asked, measures=GATE_MEASURES if enough else (validity,))


def _shared(labels: Mapping[str, Numbers], device: torch.device) -> dict[str, Numbers]:
    """The main process's numbers on every process."""
    grid = torch.full((len(GENERATED), len(CHECKS), 2), torch.nan, dtype=torch.float64)
    for source in GENERATED:
        for column, check in enumerate(CHECKS):
            found = labels.get(source.label, {}).get(check.name, {})
            grid[source.real, column] = torch.tensor([found.get(kind, torch.nan) for kind in KINDS])
    values = broadcast(grid.to(device)).tolist()
    return {
        source.label: {
            check.name: dict(zip(KINDS, pair, strict=True))
            for check, pair in zip(CHECKS, values[source.real], strict=True)
            if not any(map(math.isnan, pair))
        }
        for source in GENERATED
    }
