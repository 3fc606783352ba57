"""Quality report of an augmenter's pool: a verdict, and measures of generated rows with a floor of real rows."""

from dataclasses import dataclass
from typing import Any

from o2o_diffusion.errors import InputError
from o2o_diffusion.quality import measures
from o2o_diffusion.quality.comparison import MIN_ROWS, compare
from o2o_diffusion.quality.real import RealData
from o2o_diffusion.quality.verdict import Verdict
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Gate
from o2o_diffusion.types import GENERATED, Source

MEASURES = (measures.marginals, measures.correlations, measures.transport, *measures.GATE_MEASURES, measures.novelty)
"""Measures that take seconds and need neither a simulator nor a policy."""


@dataclass(frozen=True)
class Report:
    """The verdict on a pool, and its numbers: `labels["online"]["auc"]` is {"generated", "floor", "copier"}.

    As a string: the verdict with its three worst reasons.
    """

    verdict: Verdict
    labels: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return self.verdict.summary


def report(replay: Replay, *, rows: int, gate: Gate) -> Report:
    """Measure the pool and hold it against the limits of `gate`, whether open or not.

    Compares generated rows with held-out real rows of their label (`RealData.of`). Labels with fewer than 100 generated
    rows are left out. Raises InputError if there are no others, or no real rows.
    """
    labels, counted = {}, 0
    for source in GENERATED:
        generated, real = replay.pools[source].all().to("cpu"), RealData.of(replay, source)
        if len(generated) >= MIN_ROWS and real is not None:
            options: dict[str, Any] = {"is_online": source.real is Source.ONLINE, "rows": rows, "measures": MEASURES}
            labels[source.label] = compare(generated, real, copier=True, **options)
            counted += len(generated)
    if not labels:
        raise InputError(f"there are no {MIN_ROWS} generated rows of a label to report on: call refresh()")
    return Report(Verdict.of(labels, gate, counted, counted), labels)
