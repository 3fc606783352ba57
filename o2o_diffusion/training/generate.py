"""Write rows of a saved generator to a file (.safetensors, .npz, D4RL's .hdf5) or a Minari dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data import local
from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.loading import make_replay
from o2o_diffusion.data.one_step import Layout, check_size, open_dataset, write_rows
from o2o_diffusion.data.tables import FILES
from o2o_diffusion.data.writing import check_new_id
from o2o_diffusion.environments.environment import make_raw_environment
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.generators.pretrained import checksum, find_folder, load_generator, read_provenance
from o2o_diffusion.progress import progress_bar
from o2o_diffusion.replay import Replay
from o2o_diffusion.storage import atomic_file, check_writable
from o2o_diffusion.types import GENERATED, EnvironmentSpec, Source, Transitions, TransitionSpec

LABELS = {source.label: source for source in GENERATED}
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
    """Sample rows from a saved generator and write them to `output`; returns the path and the number of rows.

    `generator` is a folder or Hub id, `output` a file (the suffix is its format) or the id of a new Minari dataset.
    `dataset` has the real rows that a generator with `start_sigma` starts from; if it is a Minari dataset, a new Minari
    dataset copies its spaces and environment. Files are complete or absent. Raises InputError (one line) if a setting
    is missing or unknown.
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
    sampling = getattr(loaded.config, "sampling", None)
    if real is None and getattr(sampling, "start_sigma", None) is not None:
        raise InputError(f"{generator} starts from real rows (sampling.start_sigma): give dataset=<its dataset>")
    provenance = read_provenance(find_folder(generator))
    layout = None if Path(output).suffix in SUFFIXES else choose_layout(loaded.spec, provenance, dataset, real)
    if layout is not None:
        check_size(num_samples, layout)
    rows = draw(loaded, num_samples, LABELS[label], make_replay(real) if real else Replay(loaded.spec))
    if layout is None:
        write_file(rows, Path(output))
        return Path(output), len(rows)
    names = [provenance.get(name) for name in ("dataset", "online_dataset")]
    known = {"algorithm_name": type(loaded).__name__, "source_datasets": [name for name in names if name]}
    known |= {"generator_sha256": checksum(find_folder(generator)), "label": label}
    return write_rows(output, rows, layout, known), len(rows)


def choose_layout(
    spec: TransitionSpec, provenance: Mapping[str, Any], name: str | None, real: Dataset | None
) -> Layout:
    """Layout of the Minari dataset `name`, loaded as `real`, or else from the generator's `provenance`."""
    if name is None or real is None or Path(name).suffix in FILES:
        return Layout.flat(spec, provenance, find_environment(provenance))
    return Layout.of(real, open_dataset(name))


def find_environment(provenance: Mapping[str, Any]) -> gym.Env | None:
    """Environment in a generator's `provenance`; None if there is none or it can't be created on this machine."""
    if not provenance.get("environment") or provenance.get("observation_keys"):
        return None
    try:
        environment = make_raw_environment(EnvironmentSpec(**provenance["environment"]))
    except InputError:
        return None
    environment.close()
    return environment


def check_output(output: str) -> None:
    """Raise InputError unless `output` is a writable file or an unused Minari dataset id."""
    if Path(output).suffix in SUFFIXES:
        check_writable(Path(output).parent)
    elif local.ID.fullmatch(output):
        check_new_id(output)
    else:
        suffixes = ", ".join(SUFFIXES)
        raise InputError(f"output '{output}' must end in one of {suffixes}, or be a Minari id (namespace/name-v0)")


def draw(generator: Any, num_samples: int, source: Source, replay: Replay) -> Transitions:
    """Sample `num_samples` rows with a progress bar; generators drop rows that are not finite."""
    at_a_time = getattr(generator.config, "sample_batch_size", num_samples)
    parts = []
    with progress_bar("generate", num_samples, unit="row") as bar:
        for start in range(0, num_samples, at_a_time):
            size = min(at_a_time, num_samples - start)
            parts.append(generator.sample(size, source=source, replay=replay, agent=NoAgent()))
            bar.update(size)
    return Transitions.cat(parts)


def write_file(rows: Transitions, path: Path) -> None:
    """Write D4RL's columns to `path` in the format of its suffix, each row as an episode of its own.

    Raises OSError if `path` can't be written.
    """
    columns = {
        "observations": rows.observations,
        "actions": rows.actions,
        "rewards": rows.rewards,
        "next_observations": rows.next_observations,
        "terminals": rows.terminations.bool(),
        "timeouts": ~rows.terminations.bool(),
    }
    with atomic_file(path) as temporary:
        _write(columns, temporary)


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
