"""Metrics logging to a JSONL file, progress bars and an optional tracker (wandb, TensorBoard)."""

import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from o2o_diffusion.errors import InputError
from o2o_diffusion.progress import LINES, progress_bar
from o2o_diffusion.storage import Lines


class Logger:
    """Write metrics to `metrics.jsonl` in the run folder and to the tracker.

    Metrics stay tensors on their device until they are written. Only the main process writes.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of the tracker and the progress bars; the defaults need no account."""

        tracker: Annotated[str | None, "wandb, tensorboard, or null"] = None
        mode: Annotated[str, "mode of wandb: online, offline or disabled"] = "online"
        project: Annotated[str, "name of the project in the tracker"] = "o2o_diffusion"
        progress: Annotated[bool, "show progress bars"] = True

    def __init__(self, config: Config, folder: Path, accelerator: Accelerator, settings: Mapping[str, Any]):
        self.config, self.accelerator = config, accelerator
        self.writes = accelerator.is_main_process
        self.path = folder / "metrics.jsonl"
        self.file = Lines(self.path)
        self.bars: dict[str, tqdm] = {}
        if config.tracker is not None:
            options = {"wandb": {"mode": config.mode, "dir": str(folder)}} if config.tracker == "wandb" else {}
            accelerator.init_trackers(config.project, config=_flat(settings), init_kwargs=options)

    @staticmethod
    def check(config: Config) -> None:
        """Raise InputError (one line) if the tracker is unknown or not installed."""
        if config.tracker not in (None, "wandb", "tensorboard"):
            raise InputError(f"setting 'logger.tracker': '{config.tracker}' is not one of wandb, tensorboard, null")
        if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
            raise InputError(f"logger={config.tracker} needs: pip install '.[{config.tracker}]'")

    def log(self, metrics: Mapping[str, Tensor | float | str | None], *, updates: int, env_steps: int) -> None:
        """Write one line with the numbers of updates and environment steps and `metrics`."""
        if not self.writes:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        if error := self.file.append(json.dumps({"updates": updates, "env_steps": env_steps, **values})):
            self.warn(f"{error}; the line is written later")
        if self.config.tracker is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            self.accelerator.log({**numbers, "env_steps": env_steps}, step=updates + env_steps)

    def note(self, text: str) -> None:
        """Print a line between the progress bars."""
        if self.writes:
            tqdm.write(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """Print a one-line warning between the progress bars."""
        self.note(f"warning: {text}")

    def progress(self, name: str, done: int, total: int, *, lines: int = LINES, **shown: str) -> None:
        """Set the progress bar `name` to `done` of `total`; closes it when it is full."""
        if not (self.writes and self.config.progress):
            return
        if name not in self.bars:
            self.bars[name] = progress_bar(name, total, initial=done, lines=lines)
        bar = self.bars[name]
        if shown:
            bar.set_postfix(shown, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            del self.bars[name]

    def close(self) -> None:
        """Close the progress bars; the accelerator closes the tracker."""
        for bar in self.bars.values():
            bar.close()
        self.bars.clear()

    def state_dict(self) -> dict[str, Any]:
        """Number of bytes written, which are on the disk then."""
        return {"bytes": self.file.flush() if self.writes else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Delete the lines written after the checkpoint, so that a resumed run writes each line once."""
        if self.writes and not self.file.cut(state["bytes"]):
            self.warn(f"{self.path} is shorter than at the checkpoint: lines are missing")


def _plain(value: Tensor | float | str | None) -> float | str | None:
    """Convert `value` to JSON; numbers that are not finite become null."""
    value = float(value) if isinstance(value, Tensor) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, str, bool, torch.Tensor)) else str(value)
    return flat
