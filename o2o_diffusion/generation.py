"""The generator on its own: trained from datasets without a learner, and drawn from into files."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from o2o_diffusion.checkpoint import check_writable
from o2o_diffusion.config import Settings, locate
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.replay import Replay
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.hardware import choose_matmul, set_threads
from o2o_diffusion.report import show_plan
from o2o_diffusion.types import Source, Transitions

LABELS = {"online": Source.GENERATED_ONLINE, "offline": Source.GENERATED_OFFLINE}
SAVED = "generator.json"
"""In the folder of every saved generator; its `target` is the class that loads the folder."""

SUFFIXES = (".npz", ".hdf5", ".safetensors")


class NoAgent:
    """Stands where there is no policy; a generator that needs one says so."""

    def __getattr__(self, name: str) -> Any:
        raise InputError("this generator needs a policy; train it inside scripts/finetune.py")


class GeneratorTraining:
    """One refresh of a generator on a dataset, and on a second one whose rows carry the online label."""

    @dataclass(frozen=True)
    class Config:
        """The run's own settings; the number of steps is the generator's."""

        seed: Annotated[int, "decides everything random"] = 0
        online_dataset: Annotated[str | None, "dataset whose rows carry the online label; null: none"] = None
        output: Annotated[str | None, "folder to save the generator in; null: generators/<dataset>_<generator>"] = None
        threads: Annotated[int, "threads per process; 0: the cores divided by the processes"] = 0

    def __init__(self, settings: Settings):
        self.settings, self.config = settings, settings.run
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.threads, self.matmul = set_threads(self.config.threads), choose_matmul()
        with self.accelerator.main_process_first():
            self.task = settings.components["task"].build()
        component = settings.components["generator"]
        self.folder = Path(
            self.config.output
            or Path("generators") / f"{Path(self.task.dataset.name).name}_{component.target.__name__.lower()}"
        )
        if self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"output '{self.folder}' is not empty; choose another folder")
        check_writable(self.folder)
        self.replay = self._replay()
        device = self.accelerator.device
        self.generator = component.build(self.task.dataset.spec, seed=self.config.seed, device=device)
        if self.generator.num_updates == 0 or not hasattr(self.generator, "save_pretrained"):
            raise InputError(f"generator {component.target.__name__} has nothing to train")

    def execute(self) -> int:
        """Train, save, and say where."""
        main, agent = self.accelerator.is_main_process, NoAgent()
        if main:
            pools = {source.name.lower(): len(pool) for source, pool in self.replay.pools.items() if len(pool)}
            show_plan({"task": self.task.description, "rows": str(pools), "output": str(self.folder)})
        start = time.perf_counter()
        with self.accelerator.autocast():
            self.generator.begin_refresh(self.replay, agent)
            for _ in tqdm(range(self.generator.num_updates), desc="train generator", disable=not main):
                self.generator.update(self.replay, agent)
        if main:
            self.generator.save_pretrained(self.folder)
            print(f"saved to {self.folder} after {time.perf_counter() - start:.0f} s")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return 0

    def _replay(self) -> Replay:
        offline = self.task.dataset
        online = load_dataset(self.config.online_dataset) if self.config.online_dataset else None
        if online is not None and online.spec != offline.spec:
            raise InputError(
                f"online_dataset {online.name} has {online.spec}, the task {offline.name} has {offline.spec}"
            )
        capacities = {Source.OFFLINE: offline.num_transitions, Source.ONLINE: online.num_transitions if online else 0}
        replay = Replay(offline.spec, capacities, device=self.accelerator.device)
        replay.load(offline.episodes)
        for number, episode in enumerate(online.episodes if online else ()):
            replay.online.append(episode.transitions(), episode=number)
        return replay


def generate_file(
    folder: str | None, num_samples: int, label: str, output: str | None, *, seed: int
) -> tuple[Path, int]:
    """Draw rows from the generator saved in `folder` into the file `output`; returns the file and its rows.

    Raises InputError, one line, for whatever is missing or unknown; an interrupted file is never left behind.
    """
    if folder is None or output is None:
        raise InputError("give generator=<folder of a saved generator> and output=<file>")
    if label not in LABELS:
        raise InputError(f"label '{label}' is not one of {', '.join(LABELS)}{nearest(label, LABELS)}")
    path = Path(output)
    if path.suffix not in SUFFIXES:
        raise InputError(f"output '{output}' must end in one of {', '.join(SUFFIXES)}")
    check_writable(path.parent)
    saved = Path(folder) / SAVED
    if not saved.is_file():
        raise InputError(f"{folder} is not a saved generator: it has no {SAVED}")
    target: Any = locate(json.loads(saved.read_text())["target"])
    generator = target.from_pretrained(folder, seed=seed)
    rows = generator.sample(num_samples, source=LABELS[label])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}{path.suffix}")
    try:
        _write(rows, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path, len(rows)


def _write(rows: Transitions, path: Path) -> None:
    """D4RL's columns; generated rows are single transitions, so that every one of them ends a segment."""
    columns = {
        "observations": rows.observations,
        "actions": rows.actions,
        "rewards": rows.rewards,
        "next_observations": rows.next_observations,
        "terminals": rows.terminations.bool(),
        "timeouts": ~rows.terminations.bool(),
    }
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: column.contiguous() for name, column in columns.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{name: column.numpy() for name, column in columns.items()})
    else:
        import h5py

        with h5py.File(path, "w") as file:
            for name, column in columns.items():
                file.create_dataset(name, data=column.numpy(), compression="gzip")
