"""What of a study is run, and in which order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from o2o_diffusion.studies.places import Places
from o2o_diffusion.studies.pretraining import with_pretraining
from o2o_diffusion.studies.results import Row
from o2o_diffusion.studies.rows import find_row, read_rows
from o2o_diffusion.studies.runner import Process, Runner
from o2o_diffusion.studies.screening import dropped, is_screening, shown_drops
from o2o_diffusion.studies.study import Cell, Study, with_data
from o2o_diffusion.studies.timing import expected_hours, timed_seconds
from o2o_diffusion.training.session import processor


def run_study(
    study: Study,
    places: Places,
    jobs: int,
    start: Callable[[str, list[str], Path], Process],
    seeds: int | None = None,
    stack: int = 1,
    timed: Callable[..., float] = timed_seconds,
) -> list[Cell]:
    """Run the cells without a row: first those that the screening needs, then those that it leaves.

    Up to `stack` seeds of a cell run in one process. Prints the expected core-hours before the start; they are those
    without stacking. Returns the cells that failed.
    """
    rows, cells = read_rows(places.rows), list(study.cells(seeds))
    for cell in cells:
        with_data(cell.settings, places.data)  # raises InputError
    first = unfinished([cell for cell in cells if is_screening(study, cell)], rows)
    rest = unfinished(remaining(study, cells, rows), rows)
    hours = expected_hours([*first, *rest], rows, partial(timed, data=places.data))
    print(f"{study.name}: {len(first) + len(rest)} of {len(cells)} cells to run, {hours:.2g} core-hours")
    runner = Runner(places, jobs, start)
    failed = runner.run(prepared(study, first, stack))
    rows = read_rows(places.rows)
    if note := shown_drops(study, dropped(study, rows)):
        print(note)
    return failed + runner.run(prepared(study, unfinished(remaining(study, cells, rows), rows), stack))


def remaining(study: Study, cells: Iterable[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells after the screening that it doesn't drop."""
    compare, drops = study.config.compare, dropped(study, rows)
    late = [cell for cell in cells if not is_screening(study, cell)]
    return [cell for cell in late if (cell.values[compare], cell.group(compare)) not in drops]


def unfinished(cells: Iterable[Cell], rows: Sequence[Row]) -> list[Cell]:
    """The cells without a row of this kind of processor and today's numbers."""
    here = processor()
    return [cell for cell in cells if find_row(rows, cell, here) is None]


def prepared(study: Study, cells: Iterable[Cell], stack: int) -> Iterable[Cell]:
    """The cells, stacked, with the offline runs that they share."""
    cells = stacked(cells, stack)
    return with_pretraining(cells) if study.config.share_pretraining else cells


def stacked(cells: Iterable[Cell], size: int) -> list[Cell]:
    """Join up to `size` cells that differ in their seed only and have consecutive ones, in the first one's place."""
    joined: list[Cell] = []
    latest: dict[str, int] = {}  # place of the newest block of a cell
    for cell in cells:
        place = latest.get(cell.key, -1)
        block = joined[place] if place >= 0 else None
        if block is not None and block.num_seeds < size and cell.seed == block.seed + block.num_seeds:
            joined[place] = replace(block, num_seeds=block.num_seeds + 1)
        else:
            latest[cell.key] = len(joined)
            joined.append(cell)
    return joined
