"""What is asked of an agent, whichever it is."""

from typing import Any

import torch
from torch import Tensor

from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Transitions


class NoAgent:
    """Stands where there is no policy; a generator that asks it for something says so."""

    def __getattr__(self, name: str) -> Any:
        raise InputError("this generator needs a policy: train it in scripts/finetune.py, or give it an agent")


@torch.no_grad()
def td_errors(agent: Agent, batch: Transitions, replay: Replay) -> Tensor:
    """[B], |r + discount (1 - termination) Q(s', a') - Q(s, a)|, a' the agent's best action; on raw rewards."""
    next_actions = agent.act(batch.next_observations, deterministic=True)
    next_q = agent.values(batch.next_observations, next_actions)
    target_q = replay.transform(batch.rewards) + replay.discount * batch.continues * next_q
    return (target_q - agent.values(batch.observations, batch.actions)).abs()
