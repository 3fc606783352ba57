"""Runs of several seeds in one process: `num_seeds` ordinary runs, each in its own folder, with stacked learners."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from o2o_diffusion.environments.tasks import Task
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import Settings
from o2o_diffusion.training.faults import reported
from o2o_diffusion.training.finetune import Run, run_name
from o2o_diffusion.training.folders import (
    CHECKPOINTS,
    SUMMARY,
    free_folder,
    newest_unfinished,
    open_run,
    seed_folder,
    seed_folders,
)
from o2o_diffusion.training.lockstep import Lockstep
from o2o_diffusion.training.report import show_plan, show_seeds
from o2o_diffusion.training.session import settled_heap
from o2o_diffusion.training.stackable import check_stacking


class SeedRuns:
    """Runs of one setting with different seeds, in the folders `folder`/seed<seed>.

    Each of these is the folder of an ordinary run, and can also be continued alone.
    """

    def __init__(self, runs: Sequence[Run], folder: Path):
        self.runs, self.folder = runs, folder
        for run in runs[1:]:
            run.loop.logger.config = replace(run.loop.logger.config, progress=False)
        check_stacking((runs[0], runs[-1]))

    @classmethod
    def create(cls, settings: Settings) -> "SeedRuns":
        """Create the runs of the seeds seed, ..., seed + num_seeds - 1."""
        config = settings.run
        if settings.components["logger"].config.tracker == "wandb":
            raise InputError("setting 'num_seeds': wandb takes one run per process; choose another tracker, or null")
        seeds = range(config.seed, config.seed + config.num_seeds)
        name = f"{run_name(settings)}_seeds{seeds[0]}-{seeds[-1]}"
        folder = Path(config.output) if config.output else free_folder(Path("runs") / name)
        task, runs = build_task(settings), []
        for seed in seeds:
            own = {"seed": seed, "num_seeds": 1, "output": str(seed_folder(folder, seed))}
            if config.pretrained is not None:
                own["pretrained"] = pretrained_of(config.pretrained, seed)
            runs.append(Run(settings.with_run(**own), task=task))
        return cls(runs, folder)

    @classmethod
    def resume(cls, folder: Path, overrides: Sequence[str] = ()) -> "SeedRuns":
        """Restore the interrupted runs in `folder`, with `overrides` of each; finished ones are left alone."""
        unfinished = [path for path in seed_folders(folder) if not (path / SUMMARY).exists()]
        if not unfinished:
            raise InputError(f"--resume {folder}: every run in it is finished")
        saved = [open_run(path, "--resume", overrides) for path in unfinished]
        task = build_task(saved[0].settings)
        runs = [Run(run.settings, run.folder, run.state, record=run.record, task=task) for run in saved]
        return cls(runs, folder)

    def execute(self) -> int:
        """Show the plan, run until finished or interrupted, write and show the results; returns the exit code."""
        session = self.runs[0].session
        session.listen()
        with contextlib.ExitStack() as stack:
            for run in self.runs:
                stack.enter_context(run.locked())
            stack.enter_context(reported(self.folder, self.runs[0].folder / CHECKPOINTS, self.folder))
            plan = self.plan()
            for run in self.runs:
                run.begin()
            if session.is_main:
                show_plan(plan)
            with settled_heap():
                finished = Lockstep([run.loop for run in self.runs]).run()
            for run in self.runs:
                run.loop.logger.close()
            if session.is_main and finished:
                show_seeds([run.report()[0] for run in self.runs], self.folder)
        if session.is_main and not finished:
            print(f"interrupted; continue with: --resume {self.folder}")
        for run in self.runs:
            run.session.close()
        return session.exit_code(finished=finished)

    def plan(self) -> dict[str, str]:
        """Summary of the runs, for the header."""
        seeds = [str(run.config.seed) for run in self.runs]
        plan = self.runs[0].plan()
        expected = f"at most {len(seeds)} times {plan['expected']}, the time of one alone"
        known = {"seeds": f"{', '.join(seeds)}, learners stacked", "expected": expected, "output": str(self.folder)}
        return plan | known


def start(settings: Settings) -> Run | SeedRuns:
    """Create a new run, or those of several seeds."""
    return Run(settings) if settings.run.num_seeds == 1 else SeedRuns.create(settings)


def resume(where: str, overrides: Sequence[str] = ()) -> Run | SeedRuns:
    """Restore the interrupted run, or the runs of several seeds, in the folder `where` ("auto": the newest).

    `overrides` of their settings are recorded in the next checkpoints.
    """
    folder = newest_unfinished() if where == "auto" else Path(where)
    return SeedRuns.resume(folder, overrides) if seed_folders(folder) else Run.resume(folder, overrides)


def build_task(settings: Settings) -> Task:
    """The task of all runs, so that its dataset is loaded once."""
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        return settings.components["task"].build()


def pretrained_of(folder: str, seed: int) -> str:
    """The pretraining run of `seed` in `folder`, or `folder` itself if it is a single run."""
    own = seed_folder(Path(folder), seed)
    return str(own) if own.exists() else folder
