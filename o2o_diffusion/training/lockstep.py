"""Several loops in one process whose learners' updates are run as one."""

import time
from collections.abc import Sequence
from typing import Any

from o2o_diffusion.environments.guard import StepFault
from o2o_diffusion.learners.stacking import Stack, host_state
from o2o_diffusion.training.loop import Action, Loop


class Lockstep:
    """Advances `loops`, which differ in their seeds only, from one common update to the next.

    A loop whose learner is due for an update waits until all others are, and does everything else by itself. Where
    loops have different numbers of updates, those behind go first. Each loop ends as it would alone.
    """

    def __init__(self, loops: Sequence[Loop]):
        self.loops, self.session = loops, loops[0].session
        self.stack: Stack | None = None
        self.stacked: list[Any] = []

    def run(self) -> bool:
        """Run every loop to its end; returns False if interrupted. Saves the last states in both cases.

        A fault of one loop's environment leaves a checkpoint of every loop behind.
        """
        try:
            return self._run()
        except StepFault:
            for loop in self.loops:
                loop.save()
            raise

    def _run(self) -> bool:
        while waiting := [loop for loop in self.loops if not loop.finished]:
            if not all(self.advance(loop) for loop in waiting):
                for loop in waiting:
                    loop.save()
                return False
            if waiting := [loop for loop in waiting if not loop.finished]:
                self.update(alike(waiting))
        return True

    def advance(self, loop: Loop) -> bool:
        """Run `loop` until an update of its learner is due, or to its end; returns False if interrupted."""
        while not self.session.stop(loop.ticks):
            if loop.due() is Action.UPDATE:
                return True
            loop.tick()
            if loop.finished:
                loop.save()
                return True
        return False

    def update(self, loops: Sequence[Loop]) -> None:
        """Run one update of every learner in `loops`."""
        start = time.perf_counter()
        with self.session.autocast():
            drawn = [loop.draw() for loop in loops]
            results = self.stack_of(loops).update([batch for batch, _ in drawn])
        parts = [loop.current.name for loop in loops]
        for loop, (_, sampled), metrics in zip(loops, drawn, results, strict=True):
            loop.end_update(sampled | metrics)
        seconds = (time.perf_counter() - start) / len(loops)
        for loop, part in zip(loops, parts, strict=True):
            loop.end_tick(part, seconds)

    def stack_of(self, loops: Sequence[Loop]) -> Stack:
        """The stacked learners of `loops`, stacked anew if any loop has another learner or phase than before."""
        wanted = [(loop.learner, loop.phase) for loop in loops]
        if self.stack is None or wanted != self.stacked:
            self.stack, self.stacked = Stack([loop.learner for loop in loops]), wanted
        return self.stack


def alike(loops: Sequence[Loop]) -> list[Loop]:
    """The loop with the fewest updates, and those in the same phase with as many."""
    first = min(loops, key=lambda loop: loop.updates)
    state = host_state(first.learner)
    return [loop for loop in loops if loop.phase == first.phase and host_state(loop.learner) == state]
