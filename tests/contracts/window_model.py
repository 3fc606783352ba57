"""A generator that learns from windows of five steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec

LENGTH = 5


class WindowModel(Stateful):
    """Averages the change of the observation over windows; its rows are real ones that drift on by it."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    state_fields = ("drift", "lengths")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec, self.rng = config, spec, ShardedRng(seed, device, shared=False)
        self.drift = torch.zeros(spec.observation_dim, device=device)
        self.lengths: list[int] = []

    def share(self, replay: Replay) -> GeneratedShare:
        return GeneratedShare(0.5)

    def next_refresh(self, replay: Replay) -> Refresh:
        return Refresh(updates=4, rows=20, first=30, interval=30)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None: ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        windows = replay.gather(replay.union(self.rng.integers(replay.num_real, 16)), length=LENGTH)
        self.drift = self.mean_drift(windows)
        self.lengths += windows.weights.sum(1).int().tolist()
        return {"drift": self.drift.norm()}

    def mean_drift(self, windows: Transitions) -> Tensor:
        """[observation_dim], over the steps of [B, LENGTH] windows that are inside their episodes."""
        change = (windows.next_observations - windows.observations) * windows.weights[..., None]
        return change.sum((0, 1)) / windows.weights.sum()

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        rows = replay.gather(replay.union(self.rng.integers(replay.num_real, num_samples)))
        sources = torch.full_like(rows.sources, source)
        return rows.where(next_observations=rows.observations + self.drift, sources=sources)

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        return batch
