"""Expected core-hours of a study's cells: from finished ones, else timed on the run's own components."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.studies.results import Row
from o2o_diffusion.studies.study import Cell, with_data
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop


def expected_hours(cells: Sequence[Cell], rows: Sequence[Row], timed: Callable[[Cell], float]) -> float:
    """Core-hours of `cells`; `timed` gives the seconds of those without a finished run of the same settings."""
    finished: dict[str, list[float]] = {}
    for row in rows:
        finished.setdefault(row["key"], []).append(row["seconds"]["total"])
    unknown = {cell.key: cell for cell in cells if cell.key not in finished}
    if unknown:
        print(f"timing {len(unknown)} settings that have no finished run", flush=True)
    finished |= {key: [timed(cell)] for key, cell in unknown.items()}
    return sum(mean(finished[cell.key]) for cell in cells) / 3600


def timed_seconds(cell: Cell, data: Path | None) -> float:
    """Expected seconds of a cell's run on one thread, timed on throwaway components."""
    with TemporaryDirectory() as folder:
        settings = [*with_data(cell.settings, data), "threads=1", f"output={folder}/run"]
        return Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, settings)).expected_seconds()
