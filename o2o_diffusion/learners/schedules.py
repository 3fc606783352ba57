"""Coefficients that change over the environment steps of the online phase."""

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase


class Scheduled(BaseLearner):
    """Base of learners with schedules; counts the environment steps of a phase by its updates, as many per step."""

    num_updates: int
    updates_before = 0
    state_fields = (*BaseLearner.state_fields, "updates_before")

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase and its count of steps."""
        super().begin_phase(phase, replay)
        self.updates_before = self.num_updates

    @property
    def online_steps(self) -> float:
        """Environment steps of the current phase; 0 in phases without any."""
        updates_per_step = self.phase.cadence.updates
        return (self.num_updates - self.updates_before) / updates_per_step if updates_per_step else 0.0


def linear(begin: float, end: float, fraction: float) -> float:
    """From `begin` at fraction 0 to `end` at 1, constant outside."""
    return begin + (end - begin) * min(max(fraction, 0.0), 1.0)
