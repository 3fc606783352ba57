"""Checkpoints: folders written beside and renamed, tensors in safetensors, the rest in JSON, nothing unpickled."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from o2o_diffusion.errors import InputError

MANIFEST = "MANIFEST.json"
TENSORS, STATE = "tensors.safetensors", "state.json"
SCHEMA = 1


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 1) -> Path:
    """Write `state` (nested dicts and lists of tensors, numbers and strings) as `folder/step_<step>`.

    The folder is complete when it appears: files are flushed, the manifest with their sha256 is written last, then the
    folder is renamed. Older checkpoints are pruned only then, the newest `keep` stay (0: all).
    """
    target = folder / f"step_{step:09d}"
    if target.exists() and _damage(target) is None:
        return target  # a run is in one state only after so many steps
    for left in folder.glob(".step_*.tmp-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    beside = folder / f".{target.name}.tmp-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    beside.mkdir()
    try:
        tensors: dict[str, Tensor] = {}
        content = _split(state, tensors)
        save_file(tensors, beside / TENSORS)
        (beside / STATE).write_text(json.dumps(content))
        manifest = {
            "schema": SCHEMA,
            "step": step,
            "files": {name: _sha256(beside / name) for name in (TENSORS, STATE)},
        }
        (beside / MANIFEST).write_text(json.dumps(manifest))
        for file in (*beside.iterdir(), beside):
            _flush(file)
        if target.exists():
            shutil.rmtree(target)
        os.rename(beside, target)
        _flush(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep] if keep else []:
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path, only: Path | None = None) -> dict[str, Any]:
    """The state of the newest checkpoint in `folder` whose files are as they were written, or of `only` one.

    Raises InputError when there is none; a damaged one is passed over with a line that says so.
    """
    for path in [only] if only else reversed(checkpoints(folder)):
        damaged = _damage(path)
        if damaged is None:
            return _join(json.loads((path / STATE).read_text()), load_file(path / TENSORS))
        print(f"checkpoint {path} is damaged ({damaged}); trying the one before")
    raise InputError(f"no usable checkpoint in {folder}; expected step_<number>/ with {MANIFEST}, {TENSORS}, {STATE}")


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in `folder`, oldest first by their step."""
    found = [path for path in folder.glob("step_*") if (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def _damage(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["schema"] != SCHEMA:
            return f"schema {manifest['schema']}, expected {SCHEMA}"
        changed = [name for name, digest in manifest["files"].items() if _sha256(path / name) != digest]
        return f"{changed[0]} was altered" if changed else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors taken out into `tensors`."""
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
