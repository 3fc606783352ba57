"""The one writer of the package: atomic files and folders, manifests that verify them, and locks."""

from o2o_diffusion.storage.files import atomic_file, atomic_folder, check_writable, recover, save_json, save_text, sweep
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
    "read_manifest",
    "recover",
    "save_json",
    "save_text",
    "sha256",
    "sweep",
    "write_manifest",
]
