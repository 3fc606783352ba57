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
from o2o_diffusion.storage import check_writable, lock
from o2o_diffusion.studies.page import save_study
from o2o_diffusion.studies.places import Places
from o2o_diffusion.studies.runner import start_process, stop_on_terminate
from o2o_diffusion.studies.schedule import run_study
from o2o_diffusion.studies.study import Study


@dataclass(frozen=True)
class Config:
    """A study, and where it reads and writes."""

    study: Annotated[str | None, "name of a file in configs/study, or a path ending in .yaml"] = None
    data: Annotated[str | None, "folder of the datasets, <data> in a study's settings"] = None
    seeds: Annotated[int | None, "run only seeds 0 ... N-1; null: all of the study", Ge(1)] = None
    jobs: Annotated[int, "runs at a time, of one thread each; 0: only write tables and figures", Ge(0)] = 2
    stack: Annotated[int, "seeds of a cell that run in one process, with stacked learners", Ge(1)] = 1
    runs: Annotated[str, "folder of the run folders"] = "runs/studies"
    output: Annotated[str, "folder of the results: <study>.jsonl, .md and figures"] = "docs/results"


def study(argv: list[str]) -> int:
    """Run what is missing and write the results; returns 1 if a cell failed."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if config.study is None:
        raise InputError(f"give study=<name>, one of {', '.join(available('study'))}")
    own = Study.load(config.study)
    data = Path(config.data).resolve() if config.data else None
    places = Places(data, Path(config.runs).resolve() / own.name, Path(config.output) / f"{own.name}.jsonl")
    check_writable(places.rows.parent)
    stop_on_terminate()
    with lock(places.runs):
        failed = run_study(own, places, config.jobs, start_process, config.seeds, config.stack) if config.jobs else []
    save_study(own, places.rows)
    return 1 if failed else 0


if __name__ == "__main__":
    main(study)
