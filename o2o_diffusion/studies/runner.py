"""Run cells side by side, one thread each, and append a row for each that finishes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from o2o_diffusion.settings import MODULES, PACKAGE
from o2o_diffusion.storage import lock
from o2o_diffusion.studies.places import Places
from o2o_diffusion.studies.study import Cell

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


class Runner:
    """Runs cells, `jobs` at a time, in their order; a cell that starts from another run waits for it.

    `start` starts a script with arguments and the path of its log. A cell that was stopped is continued.
    """

    def __init__(self, places: Places, jobs: int, start: Callable[[str, list[str], Path], Process]):
        self.places, self.jobs, self.start = places, jobs, start
        self.running: list[tuple[Cell, Process]] = []

    def run(self, cells: Iterable[Cell]) -> list[Cell]:
        """Run the cells; returns those that failed. On an exception, asks the running ones to save and exit."""
        queue, failed = list(cells), []
        try:
            while queue or self.running:
                while len(self.running) < self.jobs and (cell := next(filter(self.is_ready, queue), None)):
                    queue.remove(cell)
                    self.begin(cell)
                if queue and not self.running:
                    break  # what they start from has failed
                failed += self.collect()
        finally:
            for _, process in self.running:
                process.terminate()
            for _, process in self.running:
                process.wait()
        return failed + queue

    def is_ready(self, cell: Cell) -> bool:
        """Whether the run that a cell starts from, if any, has finished."""
        return cell.pretraining is None or self.places.is_finished(cell.pretraining)

    def begin(self, cell: Cell) -> None:
        """Start a cell, or continue it; if its run has finished already, only append its row."""
        folder = self.places.folder(cell)
        if self.places.is_finished(cell):
            self.places.append(cell)
            return
        is_begun = self.places.is_begun(cell)
        if folder.exists() and not is_begun:
            with lock(folder):  # not while a run of a killed runner still writes there
                shutil.rmtree(folder)
        arguments = self.places.arguments(cell)
        if is_begun:
            arguments = [f"--resume={folder}", *(word for word in arguments if word.startswith(f"{MODULES}="))]
        print(f"{cell.name}: {'continued' if is_begun else 'started'}", flush=True)
        self.running.append((cell, self.start(cell.script, arguments, folder.with_suffix(".log"))))

    def collect(self) -> list[Cell]:
        """Wait until running cells end, append their rows and return those that failed."""
        while self.running and all(process.poll() is None for _, process in self.running):
            time.sleep(POLL_SECONDS)
        failed = []
        for cell, process in [pair for pair in self.running if pair[1].poll() is not None]:
            self.running.remove((cell, process))
            if process.poll() == 0:
                self.places.append(cell)
                print(f"{cell.name}: done", flush=True)
            else:
                failed.append(cell)
                log = self.places.folder(cell).with_suffix(".log")
                print(f"{cell.name}: failed with exit code {process.poll()}, see {log}", flush=True)
        return failed


def start_process(script: str, arguments: list[str], log: Path) -> subprocess.Popen:
    """Start a script with one thread in its own process group, so that Ctrl-C reaches only the runner."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = [sys.executable, str(SCRIPTS / script), *arguments]
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def stop_on_terminate() -> None:
    """Let SIGTERM end the runner as Ctrl-C does, with its cells saved."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
