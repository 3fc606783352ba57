"""Mistakes of the user: one clear line, no traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """A user's mistake; scripts print its message to stderr and exit with 2.

    The message is one line: what is wrong, where, what was expected, and the nearest name if there is one.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: "; did you mean 'x'?", or nothing when no known name is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
