"""A lock on a folder that holds as long as a process, or one that it has started, is alive."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from o2o_diffusion.errors import InputError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[tuple[int, ...]]:
    """Lock `folder`, created if it is missing; yields the descriptors that children must inherit to hold it as well.

    Raises InputError if another process holds it. Does nothing where there is no `fcntl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield ()
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder} is in use by another process; wait for it, or choose another runs=") from error
        yield (file.fileno(),)
