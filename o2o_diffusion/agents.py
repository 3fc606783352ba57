"""A placeholder for a missing policy, and quantities computed from any agent."""

from typing import NoReturn

import torch
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Transitions


class NoAgent:
    """Placeholder for a missing policy: every method raises InputError."""

    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """Raise InputError."""
        _refuse()

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Raise InputError."""
        _refuse()

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Raise InputError."""
        _refuse()


def require_agent(agent: Agent) -> None:
    """Raise InputError if `agent` is the placeholder for a missing policy; call before training."""
    if isinstance(agent, NoAgent):
        _refuse()


@torch.no_grad()
def td_errors(agent: Agent, batch: Transitions, replay: Replay) -> Tensor:
    """[B] |r + discount (1 - termination) Q(s', a') - Q(s, a)| for a raw `batch`; a' is the agent's greedy action."""
    batch = replay.scaled(batch)
    next_actions = agent.act(batch.next_observations, deterministic=True)
    next_q = agent.values(batch.next_observations, next_actions)
    target_q = batch.rewards + batch.discounts * next_q
    return (target_q - agent.values(batch.observations, batch.actions)).abs()


def _refuse() -> NoReturn:
    raise InputError("this generator needs a policy: train it in scripts/finetune.py, or give it an agent")
