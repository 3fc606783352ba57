"""Rows of a saved generator as a file: .safetensors, .npz, D4RL's .hdf5, or as a Minari dataset."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data import local
from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.loading import make_replay
from o2o_diffusion.data.one_step import Layout, check_size, open_dataset, write_rows
from o2o_diffusion.data.tables import FILES
from o2o_diffusion.data.writing import check_new_id
from o2o_diffusion.environments.environment import make_raw_environment
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.generators.pretrained import checksum, find_folder, load_generator
from o2o_diffusion.storage import check_writable
from o2o_diffusion.types import EnvironmentSpec, Source, Transitions

LABELS = {"online": Source.GENERATED_ONLINE, "offline": Source.GENERATED_OFFLINE}
SUFFIXES = (".npz", ".hdf5", ".safetensors")


def generate_file(
    generator: str | None,
    num_samples: int,
    label: str,
    output: str | None,
    *,
    dataset: str | None = None,
    seed: int = 0,
) -> tuple[Path, int]:
    """Draw rows from a saved generator into `output`; returns where they were written and how many they are.

    `generator` is a folder or an id on the hub, `output` a file by its suffix or the id of a new Minari dataset.
    `dataset` holds the real rows that a generator with `start_sigma` starts from; a Minari dataset also lends its
    spaces and environment to a new one. Raises InputError, one line, for whatever is missing or unknown; an interrupted
    file is never left behind.
    """
    if generator is None or output is None:
        raise InputError("give generator=<folder of a saved generator> and output=<file, or id of a Minari dataset>")
    if label not in LABELS:
        raise InputError(f"label '{label}' is not one of {', '.join(LABELS)}{nearest(label, LABELS)}")
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}, expected at least 1")
    check_output(output)
    real = load_dataset(dataset) if dataset else None
    loaded = load_generator(generator, real.spec if real else None, seed=seed)
    if getattr(loaded.config, "start_sigma", None) is not None and real is None:
        raise InputError(f"{generator} starts from real rows (generator.start_sigma): give dataset=<its dataset>")
    layout = None if Path(output).suffix in SUFFIXES else choose_layout(loaded, dataset, real)
    if layout is not None:
        check_size(num_samples, layout)
    rows = draw(loaded, num_samples, LABELS[label], make_replay(real) if real else None)
    if layout is None:
        write_file(rows, Path(output))
        return Path(output), len(rows)
    known = describe(loaded) | {"generator_sha256": checksum(find_folder(generator)), "label": label}
    return write_rows(output, rows, layout, known), len(rows)


def choose_layout(generator: Any, name: str | None, real: Dataset | None) -> Layout:
    """That of the Minari dataset `name`, loaded as `real`; without one what the generator's own facts give."""
    if name is None or real is None or Path(name).suffix in FILES:
        return Layout.flat(generator.spec, generator.facts, find_environment(generator.facts))
    return Layout.of(real, open_dataset(name))


def find_environment(facts: Mapping[str, Any]) -> gym.Env | None:
    """The environment in a generator's `facts`; None if they name none, or it can't be made on this machine."""
    if not facts.get("environment") or facts.get("observation_keys"):
        return None
    try:
        environment = make_raw_environment(EnvironmentSpec(**facts["environment"]))
    except InputError:
        return None
    environment.close()
    return environment


def describe(generator: Any) -> dict[str, Any]:
    """What a dataset's metadata tell of the generator that made its rows."""
    datasets = [generator.facts.get(name) for name in ("dataset", "online_dataset")]
    return {"algorithm_name": type(generator).__name__, "source_datasets": [name for name in datasets if name]}


def check_output(output: str) -> None:
    """Raises InputError unless `output` is a file that can be written, or the id of a Minari dataset that is free."""
    if Path(output).suffix in SUFFIXES:
        check_writable(Path(output).parent)
    elif local.ID.fullmatch(output):
        check_new_id(output)
    else:
        suffixes = ", ".join(SUFFIXES)
        raise InputError(f"output '{output}' must end in one of {suffixes}, or be a Minari id (namespace/name-v0)")


def draw(generator: Any, num_samples: int, source: Source, replay: Any = None) -> Transitions:
    """`num_samples` rows at most, those that are not finite left out, with a progress bar."""
    at_a_time = getattr(generator.config, "sample_batch_size", num_samples)
    parts = []
    with tqdm(desc="generate", total=num_samples, unit="row") as bar:
        for start in range(0, num_samples, at_a_time):
            size = min(at_a_time, num_samples - start)
            parts.append(generator.sample(size, source=source, replay=replay, agent=NoAgent()))
            bar.update(size)
    return Transitions.cat(parts)


def write_file(rows: Transitions, path: Path) -> None:
    """Write D4RL's columns to `path` by its suffix, beside it first; every generated row ends a segment."""
    columns = {
        "observations": rows.observations,
        "actions": rows.actions,
        "rewards": rows.rewards,
        "next_observations": rows.next_observations,
        "terminals": rows.terminations.bool(),
        "timeouts": ~rows.terminations.bool(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}{path.suffix}")
    try:
        _write(columns, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _write(columns: dict[str, Any], path: Path) -> None:
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
