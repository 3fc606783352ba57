"""Write new Minari datasets atomically, never over an existing one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from o2o_diffusion.data import local
from o2o_diffusion.errors import InputError
from o2o_diffusion.storage import put_in_place, temporary_for, write_manifest

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

NAMESPACE = "o2o"
MANIFEST = "sha256.json"
"""Checksums of a dataset's files, in its data folder."""


def check_new_id(dataset_id: str, namespace: str | None = None) -> Path:
    """Folder of a new dataset; raises InputError unless its id is valid, in `namespace`, and not taken."""
    folder = local.folder_of(dataset_id)
    if "/" not in dataset_id:
        raise InputError(f"{dataset_id!r} has no namespace; expected namespace/name-v0")
    if namespace is not None and not dataset_id.startswith(f"{namespace}/"):
        raise InputError(f"{dataset_id!r} cannot be recorded: ids of recordings begin with '{namespace}/'")
    if folder.exists():
        raise InputError(f"{dataset_id!r} exists in {folder}; datasets are never overwritten, choose another id")
    return folder


@contextlib.contextmanager
def new_dataset(dataset_id: str, namespace: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder for a dataset's files; rename it after the block, or remove it on failure.

    It has a hidden name in the same store, not listed by Minari; its manifest is checked when it is loaded. Raises
    InputError if the id is taken or not in `namespace`, or if the store cannot be written to.
    """
    folder = check_new_id(dataset_id, namespace)
    with contextlib.ExitStack() as stack:
        try:
            building = stack.enter_context(temporary_for(local.store() / "writing"))
            building.mkdir()
        except OSError as error:
            raise InputError(f"datasets cannot be written to {local.store()}: {error}") from error
        yield building / "data"
        write_manifest(building / "data", MANIFEST)
        _publish(building, folder, dataset_id)


def write_dataset(
    data: Path, dataset_id: str, environment: gym.Env, buffers: Iterable[EpisodeBuffer], metadata: Mapping[str, Any]
) -> None:
    """Write episodes with the spaces of `environment` to the folder `data`, in Minari's HDF5 format."""
    import minari
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.new(data, environment.observation_space, environment.action_space, environment.spec)
    environment_id = environment.spec.id if environment.spec else None
    known: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "author": {"o2o_diffusion"},
        "description": f"Recorded by o2o_diffusion in {environment_id}.",
        "requirements": [f"{name}=={version(name)}" for name in ("gymnasium", "gymnasium-robotics", "mujoco")],
    }
    storage.update_metadata(known | dict(metadata))
    storage.update_episodes(buffers)  # pyright: ignore[reportArgumentType] - it takes any iterable


def _publish(building: Path, folder: Path, dataset_id: str) -> None:
    """Rename a finished dataset to its final path; the first of two simultaneous recordings wins."""
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = dataset_id.rpartition("/")[0]
    if namespace not in list_local_namespaces():
        create_namespace(namespace)
    try:
        put_in_place(building, folder)
    except OSError as error:
        raise InputError(f"{dataset_id!r} cannot be written to {folder}: {error}") from error
