"""Run a study's cells side by side, one thread each, and append a row for each that finishes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from o2o_diffusion.settings import PACKAGE
from o2o_diffusion.studies.rows import append_row, find_row, read_rows, row_of_cell
from o2o_diffusion.studies.study import Cell, Study, with_data
from o2o_diffusion.training.folders import CHECKPOINTS, SUMMARY
from o2o_diffusion.training.report import NUMBERS
from o2o_diffusion.training.session import processor

SCRIPTS = PACKAGE / "scripts" if (PACKAGE / "scripts").is_dir() else PACKAGE.parent / "scripts"
"""Inside the package in a wheel, next to it in a checkout."""
POLL_SECONDS = 0.5


class Process(Protocol):
    """A running cell."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        ...

    def terminate(self) -> None:
        """Ask the run to save its state and exit."""
        ...


@dataclass(frozen=True)
class Places:
    """Where a study reads and writes: datasets, run folders, and the file of rows."""

    data: Path | None
    runs: Path
    rows: Path

    def folder(self, cell: Cell) -> Path:
        """Run folder of a cell, a different one for other settings or numbers."""
        return self.runs / f"{cell.name}_{cell.key}_{NUMBERS}"


class Runner:
    """Runs the cells of `study` that have no row yet, `jobs` at a time, in the order of `Study.cells`.

    `start` starts a cell in a folder. A cell that was stopped is continued from its checkpoint.
    """

    def __init__(self, study: Study, places: Places, jobs: int, start: Callable[[list[str], Path], Process]):
        self.study, self.places, self.jobs, self.start = study, places, jobs, start
        self.running: list[tuple[Cell, Process]] = []
        self.failed: list[Cell] = []

    def run(self, cells: Sequence[Cell]) -> list[Cell]:
        """Run the cells; returns those that failed. On an exception, asks the running ones to save and exit."""
        queue = list(cells)
        try:
            while queue or self.running:
                while queue and len(self.running) < self.jobs:
                    self.begin(queue.pop(0))
                self.collect()
        finally:
            for _, process in self.running:
                process.terminate()
            for _, process in self.running:
                process.wait()
        return self.failed

    def begin(self, cell: Cell) -> None:
        """Start a cell, or continue it."""
        folder = self.places.folder(cell)
        if (folder / SUMMARY).exists():
            append_row(self.places.rows, row_of_cell(cell, folder))
            return
        is_begun = any(folder.glob(f"{CHECKPOINTS}/step_*"))
        if folder.exists() and not is_begun:
            shutil.rmtree(folder)
        settings = [*with_data(cell.settings, self.places.data), "threads=1", "logger.progress=false"]
        arguments = [f"--resume={folder}"] if is_begun else [*settings, f"output={folder}"]
        print(f"{cell.name}: {'continued' if is_begun else 'started'}", flush=True)
        self.running.append((cell, self.start(arguments, folder.with_suffix(".log"))))

    def collect(self) -> None:
        """Wait until a running cell ends, and append its row."""
        while self.running and all(process.poll() is None for _, process in self.running):
            time.sleep(POLL_SECONDS)
        for cell, process in [pair for pair in self.running if pair[1].poll() is not None]:
            self.running.remove((cell, process))
            if process.poll() == 0:
                append_row(self.places.rows, row_of_cell(cell, self.places.folder(cell)))
                print(f"{cell.name}: done", flush=True)
            else:
                self.failed.append(cell)
                log = self.places.folder(cell).with_suffix(".log")
                print(f"{cell.name}: failed with exit code {process.poll()}, see {log}", flush=True)


def unfinished(study: Study, rows_file: Path, seeds: int | None = None) -> list[Cell]:
    """The cells without a row of this kind of processor and today's numbers."""
    rows, here = read_rows(rows_file), processor()
    return [cell for cell in study.cells(seeds) if find_row(rows, cell, here) is None]


def start_process(arguments: list[str], log: Path) -> subprocess.Popen:
    """Start scripts/finetune.py with one thread in its own process group, so that Ctrl-C reaches only the runner."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = [sys.executable, str(SCRIPTS / "finetune.py"), *arguments]
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def stop_on_terminate() -> None:
    """Let SIGTERM end the runner as Ctrl-C does, with its cells saved."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
