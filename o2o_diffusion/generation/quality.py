"""Some numbers on a generator that has just been trained, for its card and the screen."""

from typing import Any

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.replay import Replay
from o2o_diffusion.distributed import rank
from o2o_diffusion.quality.gate import REAL, aucs


def measure(generator: Any, replay: Replay, num_rows: int) -> dict[str, Any] | None:
    """Two-sample AUC of `num_rows` new rows against the training rows of their label, for each label that has any.

    Returns {"rows": number, "auc": {label: AUC}}, on the main process only. New rows are drawn on every process,
    because all of them take part.
    """
    drawn = {
        source: generator.sample(num_rows, source=source, replay=replay, agent=NoAgent())
        for source, real in REAL.items()
        if num_rows and len(replay.pools[real])
    }
    if not drawn or rank() != 0:
        return None
    scores = aucs(drawn, replay, num_rows)
    return {"rows": num_rows, "auc": {REAL[source].name.lower(): round(score, 4) for source, score in scores.items()}}
