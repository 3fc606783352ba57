"""Run folders: create new ones, find interrupted ones, load the settings and state of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Learner
from o2o_diffusion.settings import Settings, compose
from o2o_diffusion.storage import check_writable, save_text
from o2o_diffusion.training.checkpoint import checkpoints, load_checkpoint
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.record import Record
from o2o_diffusion.types import TransitionSpec

GROUPS = ("task", "generator", "sampler", "learner", "logger")
SETTINGS, SUMMARY, CHECKPOINTS = "settings.yaml", "summary.json", "checkpoints"
SEED = "seed"
"""Start of the folder names of runs with different seeds in one folder."""
GENERATORS = Path("generators")
TRAINING = ".training"
"""Suffix of the folder with the settings and checkpoints of a generator that is still being trained."""


@dataclass(frozen=True)
class SavedRun:
    """A run on disk: its settings, their record, and its newest state; `name` is the setting that gave its folder."""

    folder: Path
    name: str
    settings: Settings
    record: Record
    state: dict[str, Any]

    def learner(self, spec: TransitionSpec, device: torch.device | str = "cpu") -> Learner:
        """Load the learner; raises InputError if it was trained with other observations or actions than `spec`."""
        learner: Learner = self.settings.components["learner"].build(spec, seed=0, device=device)
        try:
            learner.load_state_dict(self.state["learner"])
        except RuntimeError as error:
            raise InputError(
                f"{self.name}={self.folder} was trained with other observations or actions than {spec}"
            ) from error
        return learner


def open_run(folder: Path, name: str = "run", overrides: Sequence[str] = ()) -> SavedRun:
    """Open the run in `folder`, given by the setting `name`, with `overrides` of its settings.

    Raises InputError if it is not a run folder, has no usable checkpoint, was written by another version, or if its
    settings were changed since.
    """
    if not (folder / SETTINGS).is_file():
        raise InputError(f"{name}={folder}: no {SETTINGS} there; expected the folder of a run")
    settings, record, state = reopen(folder, Loop.Config, GROUPS, overrides)
    return SavedRun(folder, name, settings, record, state)


def reopen(
    folder: Path, config: type, groups: Sequence[str], overrides: Sequence[str]
) -> tuple[Settings, Record, dict[str, Any]]:
    """Settings, record and newest state of the run or training in `folder`; see `open_run`."""
    state = load_checkpoint(folder / CHECKPOINTS)  # first: settings of another version may be unknown
    record = Record.of(state.pop("settings")).continued(folder / SETTINGS, overrides)
    return compose(folder / SETTINGS, config, groups, overrides, recorded=record.overrides), record, state


def save_settings(text: str, folder: Path) -> None:
    """Write the YAML of all settings, once; raises OSError if it can't be written."""
    save_text(folder / SETTINGS, text)


def new_folder(output: str | None, name: str) -> Path:
    """Path of a new run folder, not created yet; raises InputError if it can't be written or already holds a run."""
    folder = Path(output) if output else free_folder(Path("runs") / name)
    if holds_run(folder):
        raise InputError(
            f"output '{folder}' already holds a run; choose another, or continue it with --resume {folder}"
        )
    check_writable(folder)
    return folder


def holds_run(folder: Path) -> bool:
    """Whether a run can be continued or read in `folder`: its settings are followed by its first checkpoint."""
    return (folder / SETTINGS).exists() and ((folder / SUMMARY).exists() or bool(checkpoints(folder / CHECKPOINTS)))


def newest_unfinished() -> Path:
    """Newest run under runs/ with a checkpoint and no summary, or the folder of the runs of several seeds it is among.

    Raises InputError if there is none.
    """
    runs = Path("runs")
    found = [path.parent for path in (*runs.glob(f"*/{SETTINGS}"), *runs.glob(f"*/{SEED}*/{SETTINGS}"))]
    found = [folder for folder in found if (folder / CHECKPOINTS).is_dir() and not (folder / SUMMARY).exists()]
    if not found:
        raise InputError("--resume auto: no interrupted run under runs/")
    newest = max(found, key=lambda folder: (folder / CHECKPOINTS).stat().st_mtime)
    return newest if newest.parent == runs else newest.parent


def seed_folder(folder: Path, seed: int) -> Path:
    """The folder of one of several runs that were started together."""
    return folder / f"{SEED}{seed}"


def seed_folders(folder: Path) -> list[Path]:
    """The folders of the runs in `folder` that were started together; none if it is the folder of a single run."""
    found = [path.parent for path in folder.glob(f"{SEED}*/{SETTINGS}")]
    return sorted(found, key=lambda path: int(path.name.removeprefix(SEED)))


def new_output(output: str | None, name: str) -> Path:
    """Path of a new generator folder, not created yet; raises InputError if it can't be written or is in use."""
    folder = Path(output) if output else GENERATORS / name
    check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"output '{folder}' is not empty; choose another folder")
    if checkpoints(training_of(folder) / CHECKPOINTS):
        raise InputError(
            f"output '{folder}' is still being trained; continue with --resume {folder}, or choose another"
        )
    return folder


def training_of(output: Path) -> Path:
    """Training folder (settings and checkpoints) of the generator `output`."""
    return output.with_name(output.name + TRAINING)


def output_of(training: Path) -> Path:
    """Output folder of the generator being trained in `training`."""
    return training.with_name(training.name.removesuffix(TRAINING))


def find_training(where: str) -> Path:
    """Training folder of the interrupted generator `where`, or the newest one if "auto"."""
    if where == "auto":
        found = [path.parent for path in GENERATORS.glob(f"*{TRAINING}/{CHECKPOINTS}")]
        if not found:
            raise InputError(f"--resume auto: no interrupted training under {GENERATORS}/")
        return max(found, key=lambda path: (path / CHECKPOINTS).stat().st_mtime)
    folder = Path(where) if where.endswith(TRAINING) else training_of(Path(where))
    if not (folder / SETTINGS).is_file():
        raise InputError(f"--resume {where}: no interrupted training of a generator, expected {folder / SETTINGS}")
    return folder


def free_folder(folder: Path) -> Path:
    """`folder`, with a number appended if it is taken."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free
