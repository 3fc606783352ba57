"""Processes that are killed at a chosen file operation."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def is_write(event: str, arguments: tuple) -> bool:
    """Whether an audit event writes, moves or deletes a file."""
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in EVENTS


def killed_at(point: int, function: Callable[[], object], folder: Path) -> bool:
    """Run `function` in a child that is killed before its file operation `point` (from 0) under `folder`.

    Returns False if the child had fewer operations and finished.
    """
    child = os.fork()
    if child == 0:
        _count_down(point, str(folder))
        try:
            function()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status)


def _count_down(point: int, folder: str) -> None:
    left = [point]

    def hook(event: str, arguments: tuple) -> None:
        if event in EVENTS and is_write(event, arguments) and folder in str(arguments[0]):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(hook)


def every_kill(function: Callable[[], object], folder: Path, prepare: Callable[[], object], check: Callable[[], None]):
    """Kill `function` at each of its file operations, after `prepare` and before `check`; returns their number."""
    point = 0
    while True:
        prepare()
        killed = killed_at(point, function, folder)
        check()
        if not killed:
            return point
        point += 1
