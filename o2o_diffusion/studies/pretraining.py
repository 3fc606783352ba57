"""Shared pretraining: cells with the same learner, data and seed start from one offline run."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.studies.keys import key_of
from o2o_diffusion.studies.study import Cell
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop

ONLINE = ("generator", "sampler", "online_steps", "warmup_steps", "updates_per_step", "online_capacity")
"""Settings, and groups of settings, that pretraining doesn't depend on."""


def with_pretraining(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Yield the cells, each naming the offline run that it starts from, which is yielded before the first of them.

    Cells without offline updates stay as they are.
    """
    known: dict[tuple[str, int, int], Cell] = {}
    for cell in cells:
        offline = pretraining_of(cell)
        if offline is None:
            yield cell
            continue
        if (place := (offline.key, offline.seed, offline.num_seeds)) not in known:
            known[place] = offline
            yield offline
        yield replace(cell, pretraining=known[place])


def pretraining_of(cell: Cell) -> Cell | None:
    """The offline run that a cell can start from; None without offline updates."""
    kept = [setting for setting in cell.settings if setting.partition("=")[0].partition(".")[0] not in ONLINE]
    settings = (*kept, "generator=none", "online_steps=0")
    if not compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, settings).run.pretrain_updates:
        return None
    return Cell({"run": "pretraining"}, cell.seed, settings, key_of(settings), cell.num_seeds, script="pretrain.py")
