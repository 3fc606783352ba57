"""Progress of long loops: a bar in a terminal, a few plain lines in a log file or pipe."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

LINES = 10
"""Lines between the first and the last one of a loop in a log."""


class _Lines:
    """A stream that turns tqdm's redrawn bars into lines without carriage returns."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        """Write the visible part of `text`, if any."""
        if line := text.replace("\r", "").strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()


def progress_bar(description: str, total: int, *, lines: int = LINES, disable: bool = False, **options: Any) -> tqdm:
    """A tqdm bar of `total` steps on standard error, or `lines` lines if that is not a terminal (0: none at all).

    `options` are tqdm's (unit, initial).
    """
    options |= {"total": total, "desc": description}
    if sys.stderr.isatty():
        return tqdm(mininterval=0.5, dynamic_ncols=True, disable=disable, **options)
    return tqdm(
        file=_Lines(sys.stderr),
        miniters=max(1, -(-total // max(lines, 1))),  # rounded up
        mininterval=0,
        maxinterval=float("inf"),
        bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        disable=disable or not lines,
        **options,
    )
