"""A generator that makes rows at batch time: real states, the policy's actions, a linear model's outcomes."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import OPEN, Gate, GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import UNKNOWN_RETURN, Metrics, Source, Transitions, TransitionSpec


class PolicyRows(Stateful):
    """Fits s' - s on (s, a) by least squares at each refresh."""

    @dataclass(frozen=True)
    class Config:
        share: Annotated[float, "share of generated rows in a batch"] = 0.5
        gate: Gate = OPEN

    state_fields = ("weight",)

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec = config, spec
        self.rng = ShardedRng(seed, device)
        self.sample_rng = ShardedRng(seed + 1, device, shared=False)  # the same rows on every process
        self.weight = torch.zeros(spec.observation_dim + spec.action_dim, spec.observation_dim, device=device)

    def share(self, replay: Replay) -> GeneratedShare:
        return GeneratedShare(self.config.share, online=0.5, at_batch_time=True)

    def next_refresh(self, replay: Replay) -> Refresh:
        return Refresh(updates=1, first=30, gate=self.config.gate)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None: ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        batch = Transitions.cat([replay.offline.all(), replay.online.all()])
        inputs = torch.cat([batch.observations, batch.actions], 1)
        gram = inputs.T @ inputs + 1e-3 * torch.eye(inputs.shape[1])
        self.weight = torch.linalg.solve(gram, inputs.T @ (batch.next_observations - batch.observations))
        return {}

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        batch = replay.gather(replay.union(self.sample_rng.integers(replay.num_real, num_samples)))
        made = self.rows(batch, agent.act(batch.observations, rng=self.sample_rng))
        return made.where(sources=torch.full_like(made.sources, source))

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        actions = agent.act(batch.observations, rng=self.rng)  # for the whole batch, whatever is marked in it
        return batch.with_rows(batch.is_generated, self.rows(batch, actions))

    def rows(self, batch: Transitions, actions: Tensor) -> Transitions:
        following = batch.observations + torch.cat([batch.observations, actions], 1) @ self.weight
        unknown = torch.full_like(batch.returns, UNKNOWN_RETURN)
        return batch.where(actions=actions, next_observations=following, returns=unknown)
