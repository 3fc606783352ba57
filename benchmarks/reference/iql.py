"""Plain IQL."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.networks import Critic, GaussianActor, adam, descend, follow, mlp
from o2o_diffusion.types import Transitions


class IQL:
    """Value, critics and actor, each with its own step."""

    def __init__(self, observation_dim: int, action_dim: int, width: int):
        dims = observation_dim, action_dim, width
        self.q1, self.q2, self.v = Critic(*dims), Critic(*dims), mlp(observation_dim, 1, width)
        self.target1, self.target2 = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        self.actor = GaussianActor(*dims)
        self.q_optimizer, self.v_optimizer = adam(self.q1, self.q2), adam(self.v)
        self.actor_optimizer = adam(self.actor)

    def update(self, batch: Transitions) -> dict[str, float]:
        """One update."""
        with torch.no_grad():
            q1, q2 = (q(batch.observations, batch.actions) for q in (self.target1, self.target2))
            target_q = torch.min(q1, q2)
            next_v = self.v(batch.next_observations).squeeze(-1)
        advantage = target_q - self.v(batch.observations).squeeze(-1)
        v_loss = ((0.7 - (advantage < 0).float()).abs() * advantage**2).mean()
        descend(self.v_optimizer, v_loss)
        y = batch.rewards + batch.discounts * next_v
        q1, q2 = self.q1(batch.observations, batch.actions), self.q2(batch.observations, batch.actions)
        q_loss = F.mse_loss(q1, y) + F.mse_loss(q2, y)
        descend(self.q_optimizer, q_loss)
        follow(self.target1, self.q1)
        follow(self.target2, self.q2)
        metrics = self.update_actor(batch, advantage.detach())
        return {"value_loss": v_loss.item(), "critic_loss": q_loss.item(), **metrics}

    def update_actor(self, batch: Transitions, advantage: Tensor) -> dict[str, float]:
        """Advantage-weighted regression."""
        weight = (3 * advantage).exp().clamp(max=100)
        loss = -(weight * self.actor(batch.observations).log_prob(batch.actions).sum(-1)).mean()
        descend(self.actor_optimizer, loss)
        return {"actor_loss": loss.item()}
