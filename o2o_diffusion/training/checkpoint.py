"""Checkpoints: atomically written folders, with tensors in safetensors and the rest in JSON; nothing is pickled."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from o2o_diffusion import __version__
from o2o_diffusion.errors import InputError
from o2o_diffusion.storage import atomic_folder, damage, read_manifest, save_text, sweep, write_manifest

MANIFEST = "MANIFEST.json"
TENSORS, STATE = "tensors.safetensors", "state.json"
SCHEMA = 3
"""Version of the checkpoint format; increment it if older checkpoints can no longer be restored."""
NAME = re.compile(r"step_(\d{1,18})", re.ASCII)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2, settings: str = "") -> Path:
    """Write `state` (nested dicts and lists of tensors, numbers and strings) as `folder/step_<step>`.

    Then delete all but the newest `keep` whole checkpoints and this one (0: keep all). `settings` identifies the run's
    settings. Raises OSError if the folder can't be written.
    """
    target = folder / name_of(step)
    if target.exists() and _damage(target) is None and read_manifest(target, MANIFEST)["settings"] == settings:
        return target  # the state at a given step is unique
    sweep(folder, "step_*")  # temporary folders of any step
    tensors: dict[str, Tensor] = {}
    content = _split(state, tensors)
    try:
        with atomic_folder(target, replace=True) as temporary:
            save_file(tensors, temporary / TENSORS)
            save_text(temporary / STATE, json.dumps(content))
            write_manifest(temporary, MANIFEST, schema=SCHEMA, version=__version__, step=step, settings=settings)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(f"checkpoint {target} of {size:,} bytes can't be written: {error}") from error
    if keep:
        _prune(folder, target, keep)
    return target


def load_checkpoint(folder: Path, only: Path | None = None) -> dict[str, Any]:
    """Load the newest whole checkpoint in `folder`, or the checkpoint `only`.

    Skips damaged checkpoints with a warning. Raises InputError if none is whole or another version wrote it.
    """
    for path in [only] if only else reversed(checkpoints(folder)):
        damaged = _damage(path)
        if damaged is None:
            return _join(json.loads((path / STATE).read_text()), load_file(path / TENSORS))
        print(f"checkpoint {path} is damaged ({damaged}); trying the one before")
    raise InputError(f"no usable checkpoint in {folder}; expected step_<number>/ with {MANIFEST}, {TENSORS}, {STATE}")


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in `folder`, whole or not, sorted by step."""
    if folder.is_dir():
        sweep(folder, "step_*")  # restores one that was moved aside
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def name_of(step: int) -> str:
    """Folder name of the checkpoint at `step`."""
    return f"step_{step:09d}"


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, if there is one."""
    return next((path for path in reversed(checkpoints(folder)) if _is_whole(path)), None)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _damage(path: Path) -> str | None:
    """Describe the damage to a checkpoint; None if it is whole. Raises InputError if another version wrote it."""
    if not (path / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = read_manifest(path, MANIFEST)
    except (OSError, TypeError, ValueError) as error:
        return f"{MANIFEST} was altered and cannot be read ({error})"
    if "files" in manifest and manifest.get("schema") != SCHEMA:
        version = manifest.get("version", "0.1")
        raise InputError(f"checkpoint {path} was written by o2o_diffusion {version}, which {__version__} can't restore")
    return damage(path, MANIFEST, (TENSORS, STATE), step=_step(path))


def _is_whole(path: Path) -> bool:
    try:
        return _damage(path) is None
    except InputError:
        return False


def _prune(folder: Path, saved: Path, keep: int) -> None:
    """Delete the checkpoints older than the newest `keep` whole ones, except `saved`, which was just written."""
    whole = 0
    for path in reversed(checkpoints(folder)):
        if whole >= keep and path != saved:
            shutil.rmtree(path)
        elif path == saved or _is_whole(path):
            whole += 1


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
