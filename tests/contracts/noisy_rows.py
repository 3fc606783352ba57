"""A generator that is no diffusion model: real rows plus 3% noise, before and during pretraining."""

from dataclasses import dataclass
from typing import Annotated

import torch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class NoisyRows(Stateful):
    """Copies drawn into a pool before the first update, or made for every batch."""

    @dataclass(frozen=True)
    class Config:
        noise: Annotated[float, "standard deviation of the noise on observations"] = 0.03
        at_batch_time: Annotated[bool, "make the rows for every batch instead of a pool"] = False

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec = config, spec
        self.rng, self.sample_rng = ShardedRng(seed, device), ShardedRng(seed + 1, device, shared=False)

    def share(self, replay: Replay) -> GeneratedShare:
        return GeneratedShare(0.25, online=0.0, at_batch_time=self.config.at_batch_time)

    def next_refresh(self, replay: Replay) -> Refresh:
        return Refresh() if self.config.at_batch_time else Refresh(rows=60, first=0)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None: ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        return {}

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        rows = replay.gather(replay.union(self.sample_rng.integers(replay.num_real, num_samples)))
        copies = self.noisy(rows, self.sample_rng)
        return copies.where(sources=torch.full_like(rows.sources, source))

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        return batch.with_rows(batch.is_generated, self.noisy(batch, self.rng))

    def noisy(self, batch: Transitions, rng: ShardedRng) -> Transitions:
        noise = self.config.noise * rng.normal(*batch.observations.shape)
        unknown = torch.full_like(batch.returns, -torch.inf)
        return batch.where(observations=batch.observations + noise, returns=unknown)
