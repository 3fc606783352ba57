"""Signals as a question that the loop asks between ticks."""

import signal
from typing import Any


class Interruption:
    """Ctrl-C and SIGTERM ask the run to save and leave; the second one leaves at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        """Whether the run should leave."""
        return self.asked

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
