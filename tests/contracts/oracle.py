"""An oracle: the policy's actions in real states, and what the data's own environment says follows (Pendulum)."""

from dataclasses import dataclass

import numpy as np
import torch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.environments.environment import AgentEnvironment, make_environment
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class Oracle(Stateful):
    """True outcomes; an offline row follows the environment of the data, an online row that of the policy."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec, self.rng = config, spec, ShardedRng(seed, device, shared=False)

    def share(self, replay: Replay) -> GeneratedShare:
        return GeneratedShare(0.5, online=0.5)

    def next_refresh(self, replay: Replay) -> Refresh:
        return Refresh(rows=40, first=30, interval=30)  # nothing to train

    def begin_refresh(self, replay: Replay, agent: Agent) -> None: ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        return {}

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        specification = self.spec.environment_of(source)
        assert specification is not None
        environment = make_environment(specification)
        batch = replay.pools[source.real][self.rng.integers(len(replay.pools[source.real]), num_samples)]
        actions = agent.act(batch.observations, rng=self.rng)
        steps = [step(environment, o, a) for o, a in zip(batch.observations.numpy(), actions.numpy(), strict=True)]
        following, rewards = (torch.from_numpy(np.array(column, np.float32)) for column in zip(*steps, strict=True))
        zeros = torch.zeros(num_samples)
        return Transitions.create(batch.observations, actions, rewards, following, zeros, source=source)

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        return batch


def step(environment: AgentEnvironment, observation: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float]:
    """What follows on `action` in the state of a Pendulum's observation (cos, sin, velocity)."""
    environment.reset(seed=0)
    environment.unwrapped.state = np.array([np.arctan2(observation[1], observation[0]), observation[2]])  # pyright: ignore[reportAttributeAccessIssue]
    following, reward, *_ = environment.step(action)
    return following, float(reward)
