"""Run a study's cells that have no result yet, side by side, and write its tables and figures.

The same command continues a study after an interruption.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import available
from o2o_diffusion.storage import check_writable
from o2o_diffusion.studies.page import save_page
from o2o_diffusion.studies.results import Results
from o2o_diffusion.studies.rows import read_rows
from o2o_diffusion.studies.runner import Places, Runner, start_process, stop_on_terminate, unfinished
from o2o_diffusion.studies.study import Cell, Study, with_data


@dataclass(frozen=True)
class Config:
    """A study, and where it reads and writes."""

    study: Annotated[str | None, "name of a file in configs/study, or a path ending in .yaml"] = None
    data: Annotated[str | None, "folder of the datasets, <data> in a study's settings"] = None
    seeds: Annotated[int | None, "run only seeds 0 ... N-1; null: all of the study", Ge(1)] = None
    jobs: Annotated[int, "runs at a time, of one thread each; 0: only write tables and figures", Ge(0)] = 2
    runs: Annotated[str, "folder of the run folders"] = "runs/studies"
    output: Annotated[str, "folder of the results, <study>.jsonl"] = "docs/results"


def run_study(argv: list[str]) -> int:
    """Run what is missing; returns 1 if a cell failed."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if config.study is None:
        raise InputError(f"give study=<name>, one of {', '.join(available('study'))}")
    study = Study.load(config.study)
    data = Path(config.data).resolve() if config.data else None
    places = Places(data, Path(config.runs).resolve() / study.name, Path(config.output) / f"{study.name}.jsonl")
    check_writable(places.rows.parent)
    failed = run_cells(study, places, config) if config.jobs else []
    if rows := read_rows(places.rows):
        command = f"python scripts/study.py study={study.name} data=<folder>"
        page = places.rows.with_suffix(".md")
        save_page(Results(rows, study.config.compare, study.config.baseline), study.name, command, page)
        print(f"tables and figures: {page}")
    return 1 if failed else 0


def run_cells(study: Study, places: Places, config: Config) -> list[Cell]:
    """Run the cells without a result; returns those that failed."""
    cells = unfinished(study, places.rows, config.seeds)
    for cell in cells:
        with_data(cell.settings, places.data)
    print(f"{study.name}: {len(cells)} cells to run, results in {places.rows}")
    stop_on_terminate()
    return Runner(study, places, config.jobs, start_process).run(cells)


if __name__ == "__main__":
    main(run_study)
