"""Errors with a one-line message: the user's, and faults during a run."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches

MIN_SECRET = 4
"""Shorter values of environment variables are not hidden, because they are parts of other words."""

_secrets: set[str] = set()


def keep_secret(text: str) -> None:
    """Hide the values of the environment variables that interpolations `${oc.env:NAME}` in `text` read."""
    _secrets.update(re.findall(r"oc\.env:\s*(\w+)", text))


def without_secrets(text: str) -> str:
    """`text` with the interpolations in place of the values that are secret."""
    for name in _secrets:
        value = os.environ.get(name, "")
        if len(value) >= MIN_SECRET:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text


class OneLineError(Exception):
    """An error whose message is one line; scripts print it to stderr and exit with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(" ".join(without_secrets(message).split()))


class InputError(OneLineError):
    """A user error: the problem, its location, the expected value, and the closest known name if any."""

    exit_code = 2


class Fault(OneLineError):
    """A fault during a run, of the environment, the machine or the numbers: what happened, and what is left."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suffix for a message about an unknown `name`: "; did you mean 'x'?", or "" if no known name is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
