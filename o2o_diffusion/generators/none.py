"""No generator: batches hold only real rows."""

from dataclasses import dataclass

import torch

from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class NoGenerator(Stateful):
    """No generator: no share of a batch, no rows, no refreshes."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.spec, self.device = spec, device

    def share(self, replay: Replay) -> GeneratedShare:
        """A share of 0."""
        return GeneratedShare()

    def next_refresh(self, replay: Replay) -> Refresh:
        """A refresh that is never due."""
        return Refresh()

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Do nothing."""

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Do nothing."""
        return {}

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """An empty batch, regardless of `num_samples`."""
        return self.spec.unflatten(torch.empty(0, self.spec.row_dim, device=self.device), source)

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        """Return `batch` unchanged."""
        return batch
