"""No generated rows: batches hold real ones only."""

from dataclasses import dataclass

import torch

from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class NoGenerator(Stateful):
    """Wants no share of a batch, makes no rows, and is never refreshed."""

    @dataclass(frozen=True)
    class Config:
        """Nothing to set."""

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.spec, self.device = spec, device
        self.generated = GeneratedShare()
        self.num_updates = self.num_samples = self.refresh_interval = self.first_refresh = 0
        self.max_auc = 1.0

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Nothing to prepare."""

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Nothing to learn."""
        return {}

    def sample(
        self,
        num_samples: int,
        *,
        source: Source = Source.GENERATED_ONLINE,
        replay: Replay | None = None,
        agent: Agent | None = None,
    ) -> Transitions:
        """No rows, whatever `num_samples` asks for."""
        return self.spec.unflatten(torch.empty(0, self.spec.row_dim, device=self.device), source)
