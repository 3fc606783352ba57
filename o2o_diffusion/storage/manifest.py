"""Manifests: the sha256 and size of every file of a folder, so that any alteration is found."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o2o_diffusion.storage.files import save_json

DIGEST = "digest"
"""Key of a manifest's sha256 of its own content."""


def sha256(path: Path) -> str:
    """The sha256 of a file in hexadecimal; raises OSError if it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, name: str, **content: Any) -> None:
    """Write the sha256 of every file in `folder` to the file `name`; call it last.

    With other `content`, the manifest has "files", "sizes" in bytes, `content`, and a digest of all of these. Raises
    OSError if a file can't be read or written.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != name]
    files = {path.name: sha256(path) for path in paths}
    if not content:
        return save_json(folder / name, files)
    content |= {"files": files, "sizes": {path.name: path.stat().st_size for path in paths}}
    return save_json(folder / name, content | {DIGEST: _digest(content)})


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """Read a manifest; raises OSError, TypeError or ValueError if it can't be read or was altered."""
    manifest = dict(json.loads((folder / name).read_text()))
    digest = manifest.pop(DIGEST, None)
    if digest not in (None, _digest(manifest)):
        raise ValueError(f"its {DIGEST} differs")
    return manifest if digest is None else manifest | {DIGEST: digest}


def damage(folder: Path, name: str, needed: Sequence[str] = (), **expected: Any) -> str | None:
    """Describe any damage to a folder by its manifest `name`; None if it is whole.

    The manifest must list the files `needed`, and have the values `expected` and a digest if there are any.
    """
    if not (folder / name).is_file():
        return f"{name} is missing"
    try:
        manifest = read_manifest(folder, name)
        for key, value in expected.items():
            if manifest.get(key) != value:
                return f"{name} has {key} {manifest.get(key)}, expected {value}"
        if expected and DIGEST not in manifest:
            return f"{name} has no {DIGEST}"
        return _altered_file(folder, name, manifest, needed)
    except (TypeError, ValueError) as error:
        return f"{name} was altered and cannot be read ({error})"
    except OSError as error:
        return str(error)


def _altered_file(folder: Path, name: str, manifest: dict[str, Any], needed: Sequence[str]) -> str | None:
    """Describe the first file that is missing or differs from the manifest."""
    files, sizes = dict(manifest.get("files", manifest)), dict(manifest.get("sizes", {}))
    for file, digest in (dict.fromkeys(needed) | files).items():
        path = folder / file
        if digest is None:
            return f"{name} does not list {file}"
        if path.parent != folder or not path.is_file():
            return f"{file} is missing"
        if (size := path.stat().st_size) != sizes.get(file, size):
            return f"{file} has {size:,} bytes, expected {sizes[file]:,}"
        if sha256(path) != digest:
            return f"{file} was altered since it was saved (sha256 differs)"
    return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
