"""Locks: one process writes to a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from o2o_diffusion.errors import InputError

try:
    import fcntl
except ImportError:  # no locks on this platform
    fcntl = None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, a hidden file next to it, which the system releases if the process ends.

    Raises InputError at once if another process holds it, OSError if the file can't be written.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with path.open("a") as file:
        if not _acquired(file, path):
            raise InputError(f"{folder} is in use by another process; wait for it, or choose another folder")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _acquired(file: IO[str], path: Path) -> bool:
    """Lock the open `file` if nobody holds it and it is still at `path`, where the last holder removed it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
