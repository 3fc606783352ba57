"""The one writer of the package: atomic files and folders, manifests that verify them, and locks."""

from o2o_diffusion.storage.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    put_in_place,
    recover,
    save_json,
    save_text,
    sweep,
    temporary_for,
)
from o2o_diffusion.storage.lines import Lines
from o2o_diffusion.storage.lock import lock
from o2o_diffusion.storage.manifest import damage, read_manifest, sha256, write_manifest

__all__ = [
    "Lines",
    "atomic_file",
    "atomic_folder",
    "check_writable",
    "damage",
    "lock",
    "put_in_place",
    "read_manifest",
    "recover",
    "save_json",
    "save_text",
    "sha256",
    "sweep",
    "temporary_for",
    "write_manifest",
]
