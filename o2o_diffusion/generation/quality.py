"""Some numbers on a generator that has just been trained, for its card and the screen."""

import sys
from typing import Any

import torch

from o2o_diffusion.data.replay import Replay
from o2o_diffusion.distributed import rank
from o2o_diffusion.protocols import NoAgent
from o2o_diffusion.quality.gate import REAL


def measure(generator: Any, replay: Replay, num_rows: int) -> dict[str, Any] | None:
    """Two-sample AUC of `num_rows` new rows against the training rows of their label, for each label that has any.

    Returns {"rows": number, "auc": {label: AUC}}, on the main process only, where it can be had. New rows are drawn on
    every process, because all of them take part.
    """
    drawn = {
        real: generator.sample(num_rows, source=source, replay=replay, agent=NoAgent())
        for source, real in REAL.items()
        if num_rows and len(replay.pools[real])
    }
    if not drawn or rank() != 0:
        return None
    try:
        from o2o_diffusion.quality.two_sample import auc

        scores = {}
        for real, rows in drawn.items():
            pool, size = replay.pools[real], min(len(replay.pools[real]), num_rows)
            evenly = torch.linspace(0, len(pool) - 1, size, device=rows.rewards.device).long()
            flat = [replay.spec.flatten(part).float().cpu() for part in (rows, pool[evenly])]
            scores[real.name.lower()] = round(auc(*flat), 4) if len(rows) else 1.0
    except ImportError as error:
        print(f"warning: quality is not measured: {error}; pip install 'o2o_diffusion[quality]'", file=sys.stderr)
        return None
    return {"rows": num_rows, "auc": scores}
