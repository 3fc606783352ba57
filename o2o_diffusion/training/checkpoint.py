"""Checkpoints: atomically written folders, with tensors in safetensors and the rest in JSON; nothing is pickled."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from o2o_diffusion import __version__
from o2o_diffusion.errors import InputError
from o2o_diffusion.storage import atomic_folder, damage, read_manifest, sweep, write_manifest

MANIFEST = "MANIFEST.json"
TENSORS, STATE = "tensors.safetensors", "state.json"
SCHEMA = 2
"""Version of the checkpoint format; increment it if older checkpoints can no longer be restored."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 1) -> Path:
    """Write `state` (nested dicts and lists of tensors, numbers and strings) as `folder/step_<step>`.

    Then delete all but the newest `keep` checkpoints (0: keep all). Raises OSError if the folder can't be written.
    """
    target = folder / f"step_{step:09d}"
    if target.exists() and _damage(target) is None:
        return target  # the state at a given step is unique
    sweep(folder, "step_*")  # temporary folders of any step
    with atomic_folder(target, replace=True) as temporary:
        tensors: dict[str, Tensor] = {}
        content = _split(state, tensors)
        save_file(tensors, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps(content))
        write_manifest(temporary, MANIFEST, schema=SCHEMA, version=__version__, step=step)
    for old in checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, only: Path | None = None) -> dict[str, Any]:
    """Load the newest intact checkpoint in `folder`, or the checkpoint `only`.

    Skips damaged checkpoints with a warning. Raises InputError if none is intact or another version wrote it.
    """
    for path in [only] if only else reversed(checkpoints(folder)):
        damaged = _damage(path)
        if damaged is None:
            return _join(json.loads((path / STATE).read_text()), load_file(path / TENSORS))
        print(f"checkpoint {path} is damaged ({damaged}); trying the one before")
    raise InputError(f"no usable checkpoint in {folder}; expected step_<number>/ with {MANIFEST}, {TENSORS}, {STATE}")


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, sorted by step."""
    found = [path for path in folder.glob("step_*") if (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _damage(path: Path) -> str | None:
    """Describe the damage to a checkpoint; None if it is intact. Raises InputError if another version wrote it."""
    damaged = damage(path, MANIFEST)
    if damaged is not None:
        return damaged
    manifest = read_manifest(path, MANIFEST)
    if manifest.get("schema") != SCHEMA:
        version = manifest.get("version", "0.1")
        raise InputError(f"checkpoint {path} was written by o2o_diffusion {version}, which {__version__} can't restore")
    return None


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert `value` to JSON and move its tensors to `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _split(item, tensors) for key, item in value.items()}
        return {"$items": [[key, _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$items" in value:
            return {key: _join(item, tensors) for key, item in value["$items"]}
        return {key: _join(item, tensors) for key, item in value.items()}
    return [_join(item, tensors) for item in value] if isinstance(value, list) else value
