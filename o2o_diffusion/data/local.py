"""Minari's local store: validate ids, locate folders, list datasets, and download missing ones.

Minari neither confines an id to the store nor cleans up after a failed download, so both are done here.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from o2o_diffusion.errors import InputError, nearest

ID = re.compile(r"(?:[A-Za-z0-9_][\w-]+/)*[A-Za-z0-9_][\w-]*-v\d+", re.ASCII)
"""(namespace/)name-vN, with namespaces of two or more characters, as required by Minari."""

CONNECTION_SECONDS = 5.0


def store() -> Path:
    """Minari's dataset folder: `MINARI_DATASETS_PATH`, else ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def folder_of(dataset_id: str) -> Path:
    """Folder of a dataset, existing or not; raises InputError if the id is malformed or points outside the store."""
    if not ID.fullmatch(dataset_id):
        raise InputError(f"{dataset_id!r} is neither an existing folder or file nor a Minari id (namespace/name-v0)")
    folder = store() / dataset_id
    if not folder.resolve().is_relative_to(store().resolve()):
        raise InputError(f"{dataset_id!r} is outside {store()}")
    return folder


def local_ids() -> list[str]:
    """Ids of the datasets in the store."""
    found = store().glob("**/data/metadata.json")
    names = (path.parent.parent.relative_to(store()).as_posix() for path in found)
    return sorted(name for name in names if ID.fullmatch(name))


def fetch(dataset_id: str) -> Path:
    """Folder of a dataset, downloaded by Minari if missing; raises InputError if it cannot be downloaded."""
    folder = folder_of(dataset_id)
    if (folder / "data" / "metadata.json").is_file():
        return folder
    existed = folder.exists()
    try:
        _check_connection()
        import minari

        minari.download_dataset(dataset_id)
    except BaseException as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise InputError(
            f"dataset {dataset_id!r} is not in {store()} and cannot be downloaded ({error}); name a folder, an .hdf5 "
            f"or an .npz file, or record it with scripts/record.py{nearest(dataset_id, local_ids())}"
        ) from error
    return folder


def _check_connection() -> None:
    """Raise OSError immediately if there is no network; the hub's own client retries for half a minute."""
    if not os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://"):
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    from huggingface_hub.constants import ENDPOINT

    request = urllib.request.Request(ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=CONNECTION_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # the server responded
    except urllib.error.URLError as error:
        raise OSError(f"no connection to {request.host}: {error.reason}") from error
