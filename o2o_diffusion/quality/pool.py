"""How good an augmenter's pool is: numbers of generated rows beside those of real rows held against other real rows."""

import warnings
from typing import Any

from o2o_diffusion.errors import InputError
from o2o_diffusion.quality import measures
from o2o_diffusion.quality.comparison import MIN_ROWS, Real, compare
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions

MIN_REAL = 1_000
"""Fewer real rows of a label say little about generated ones of it (a default of ours)."""

MEASURES = (measures.marginals, measures.correlations, measures.transport, measures.classifiers, measures.validity)
"""Those that take seconds and need neither a simulator nor a policy."""


def report(replay: Replay, *, rows: int, max_auc: float) -> dict[str, Any]:
    """{"auc": the worst of the labels, "labels": {"offline", "online": {number: {"generated", "floor"}}}}.

    Generated rows are held against every other real row of their label, or of the other one where there are too few;
    the floor is the same number of the real rows in between. The generator has seen all of these, so that a copy of
    the data would score perfectly. Labels of fewer than 100 generated rows are left out. Warns above `max_auc`. Raises
    InputError where too few rows are left.
    """
    labels = {}
    for name, source in (("offline", Source.GENERATED_OFFLINE), ("online", Source.GENERATED_ONLINE)):
        generated = replay.pools[source].all().to("cpu")
        if len(generated) >= MIN_ROWS:
            real = _real(replay, source)
            halves = Real(held_out=real[::2], training=real[1::2])
            labels[name] = compare(generated, halves, is_online=name == "online", rows=rows, measures=MEASURES)
    if not labels:
        raise InputError(f"there are not {MIN_ROWS} generated rows of a label to report on: call refresh()")
    auc = max(numbers["auc"]["generated"] for numbers in labels.values())
    if auc > max_auc:
        text = f"a classifier tells generated from real rows with an AUC of {auc:.3f}, more than {max_auc}"
        warnings.warn(f"{text}: give the generator more updates or rows", stacklevel=3)
    return {"auc": auc, "labels": labels}


def _real(replay: Replay, source: Source) -> Transitions:
    """Real rows to hold those of `source` against, on the CPU."""
    pools = replay.offline, replay.online
    own, other = pools if source is Source.GENERATED_OFFLINE else pools[::-1]
    return (own if len(own) >= min(MIN_REAL, len(other)) else other).all().to("cpu")
