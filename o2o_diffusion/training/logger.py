"""Where numbers go: a JSONL file always, progress bars on a terminal, and a tracker (wandb, TensorBoard) on request."""

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


class Logger:
    """Writes `metrics.jsonl` in the run's folder and repeats it to the tracker.

    Metrics stay tensors on their device until they are written here. Only the main process writes.
    """

    @dataclass(frozen=True)
    class Config:
        """Which tracker to use beside the JSONL file; none needs an account by default."""

        tracker: Annotated[str | None, "wandb, tensorboard, or null"] = None
        mode: Annotated[str, "of wandb: online, offline or disabled"] = "online"
        project: Annotated[str, "name the tracker files runs under"] = "o2o_diffusion"
        progress: Annotated[bool, "show progress bars"] = True

    def __init__(self, config: Config, folder: Path, accelerator: Accelerator, settings: Mapping[str, Any]):
        self.config, self.accelerator = config, accelerator
        self.writes = accelerator.is_main_process
        self.path = folder / "metrics.jsonl"
        self.bars: dict[str, tqdm] = {}
        if self.writes:
            self.path.touch()
        if config.tracker is not None:
            options = {"wandb": {"mode": config.mode, "dir": str(folder)}} if config.tracker == "wandb" else {}
            accelerator.init_trackers(config.project, config=_flat(settings), init_kwargs=options)

    @staticmethod
    def check(config: Config) -> None:
        """Raise InputError, one line, when the tracker is not installed or unknown."""
        if config.tracker not in (None, "wandb", "tensorboard"):
            raise InputError(f"setting 'logger.tracker': '{config.tracker}' is not one of wandb, tensorboard, null")
        if config.tracker is not None and importlib.util.find_spec(config.tracker) is None:
            raise InputError(f"logger={config.tracker} needs: pip install '.[{config.tracker}]'")

    def log(self, metrics: Mapping[str, Tensor | float | str | None], *, updates: int, env_steps: int) -> None:
        """Write one line: where the run stands and `metrics`."""
        if not self.writes:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"updates": updates, "env_steps": env_steps, **values}) + "\n")
        if self.config.tracker is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            self.accelerator.log({**numbers, "env_steps": env_steps}, step=updates + env_steps)

    def warn(self, text: str) -> None:
        """Show one line between the bars."""
        if self.writes:
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def progress(self, name: str, done: int, total: int, **shown: str) -> None:
        """Move the bar `name` to `done` of `total`; it closes when it is full."""
        if not (self.writes and self.config.progress):
            return
        if name not in self.bars:
            self.bars[name] = tqdm(
                total=total, desc=name, initial=done, mininterval=0.5, leave=True, dynamic_ncols=True
            )
        bar = self.bars[name]
        if shown:
            bar.set_postfix(shown, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            bar.close()
            del self.bars[name]

    def close(self) -> None:
        """Leave the terminal in order; the tracker ends with the accelerator."""
        for bar in self.bars.values():
            bar.close()
        self.bars.clear()

    def state_dict(self) -> dict[str, Any]:
        """How much has been written."""
        return {"bytes": self.path.stat().st_size if self.writes else 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Forget the lines written after the checkpoint, so that a resumed run writes each line once."""
        if self.writes:
            with self.path.open("r+b") as file:
                file.truncate(state["bytes"])


def _plain(value: Tensor | float | str | None) -> float | str | None:
    """`value` as JSON; a number that is not finite becomes null."""
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
