"""User errors: a one-line message, no traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(Exception):
    """A user error; scripts print its message to stderr and exit with code 2.

    The message is one line: the problem, its location, the expected value, and the closest known name if any.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """Suffix for a message about an unknown `name`: "; did you mean 'x'?", or "" if no known name is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
