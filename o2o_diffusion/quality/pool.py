"""Quality report of an augmenter's pool: measures of generated rows, with a floor of real against real rows."""

import warnings
from typing import Any

from o2o_diffusion.errors import InputError
from o2o_diffusion.quality import measures
from o2o_diffusion.quality.comparison import MIN_ROWS, RealData, compare
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import GENERATED, REAL, Source, Transitions

MIN_REAL = 1_000
"""Minimum number of real rows; labels with fewer use the other label's rows if there are more."""

MEASURES = (measures.marginals, measures.correlations, measures.transport, measures.classifiers, measures.validity)
"""Measures that take seconds and need neither a simulator nor a policy."""


def report(replay: Replay, *, rows: int, max_auc: float) -> dict[str, Any]:
    """Measure the pool; returns {"auc": worst label, "labels": {"offline", "online": {name: {"generated", "floor"}}}}.

    Compares generated rows with every other real row of their label, or of the other label if there are too few; the
    floor is computed on the real rows in between. The generator was trained on all of them, so a copy of the data would
    score perfectly. Labels with fewer than 100 generated rows are left out. Warns if the AUC exceeds `max_auc`. Raises
    InputError if too few rows remain.
    """
    labels = {}
    for source in GENERATED:
        generated = replay.pools[source].all().to("cpu")
        if len(generated) >= MIN_ROWS:
            real = _real(replay, source)
            halves, is_online = RealData(held_out=real[::2], training=real[1::2]), source.real is Source.ONLINE
            labels[source.label] = compare(generated, halves, is_online=is_online, rows=rows, measures=MEASURES)
    if not labels:
        raise InputError(f"there are no {MIN_ROWS} generated rows of a label to report on: call refresh()")
    auc = max(numbers["auc"]["generated"] for numbers in labels.values())
    if auc > max_auc:
        text = f"a classifier distinguishes generated from real rows with an AUC of {auc:.3f}, more than {max_auc}"
        warnings.warn(f"{text}: give the generator more updates or rows", stacklevel=3)
    return {"auc": auc, "labels": labels}


def _real(replay: Replay, source: Source) -> Transitions:
    """Real rows to compare with generated rows of `source`, on the CPU."""
    own, other = replay.pools[source.real], replay.pools[REAL[1 - source.real]]
    return (own if len(own) >= min(MIN_REAL, len(other)) else other).all().to("cpu")
