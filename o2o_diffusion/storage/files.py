"""Files and folders that appear whole or not at all, also after a crash."""

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from o2o_diffusion.errors import InputError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-(?P<pid>\d{1,9})-[0-9a-f]{8}(?P<suffix>\..+)?")
OLD = ".old"
"""Suffix of a folder moved aside while it is replaced."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, with the same suffix, and rename it to `path` after the block.

    Raises FileExistsError if `path` is not a regular file, OSError if it can't be written.
    """
    path = path.resolve()  # keep a link, replace its target
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} exists and is not a file")
    with temporary_for(path, path.suffix) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `path`, renamed to `path` after the block; with `replace`, over a folder.

    Raises FileExistsError if `path` exists and can't be replaced, OSError if it can't be written.
    """
    path = path.resolve()
    if path.exists() and not (replace and path.is_dir()):
        raise FileExistsError(f"{path} exists already")
    with temporary_for(path) as temporary:
        temporary.mkdir()
        yield temporary
        put_in_place(temporary, path, replace=replace)


def put_in_place(temporary: Path, path: Path, *, replace: bool = False) -> None:
    """Write the folder `temporary` to the disk and rename it to `path`; raises OSError if that can't be done."""
    _flush(*temporary.rglob("*"), temporary)
    if replace and path.exists():
        _swap(temporary, path)
    else:
        temporary.rename(path)
    _flush(path.parent)


def sweep(folder: Path, pattern: str) -> None:
    """Remove temporary files and folders for names matching `pattern` left by processes that no longer exist.

    A folder moved aside is restored if its replacement is missing. Raises OSError if it can't be restored.
    """
    for leftover in folder.glob(f".{pattern}.tmp-*"):
        match = TEMPORARY.fullmatch(leftover.name)
        if match is None or _exists(int(match["pid"])):
            continue
        if match["suffix"] == OLD and leftover.is_dir() and not (folder / match["name"]).exists():
            leftover.rename(folder / match["name"])
        else:
            _remove(leftover)


def recover(path: Path) -> None:
    """Restore the folder `path` if a process ended while replacing it; raises OSError if it can't be restored."""
    if path.parent.is_dir():
        sweep(path.parent.resolve(), glob.escape(path.name))


def save_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically; raises OSError if it can't be written."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` as indented JSON, atomically.

    Raises TypeError if it is not JSON, OSError if it can't be written.
    """
    save_text(path, json.dumps(dict(content), indent=2) + "\n")


def check_writable(folder: Path) -> None:
    """Raise InputError if `folder` can't be created or written to; creates nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"output '{folder}' can't be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"output '{folder}' can't be written: no permission in {existing}")


@contextlib.contextmanager
def temporary_for(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yield an unused hidden path next to `path` and remove anything left there after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}{suffix}")
    try:
        yield temporary
    finally:
        _remove(temporary)


def _swap(temporary: Path, path: Path) -> None:
    """Rename `temporary` to the existing `path`, moving the old one aside and restoring it on failure."""
    old = temporary.with_name(f"{temporary.name}{OLD}")
    try:
        path.rename(old)
        temporary.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise
    _remove(old)


def _exists(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would terminate it
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _flush(*paths: Path) -> None:
    for path in paths if os.name == "posix" else ():  # folders can't be opened elsewhere
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()  # a file
