"""Plain SAC."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference.networks import Critic, TanhGaussianActor, adam, descend, follow
from o2o_diffusion.types import Transitions


class SAC:
    """Two critics, an actor and a temperature, each with its own step."""

    def __init__(self, observation_dim: int, action_dim: int, width: int):
        dims = observation_dim, action_dim, width
        self.q1, self.q2, self.actor = Critic(*dims), Critic(*dims), TanhGaussianActor(*dims)
        self.target1, self.target2 = copy.deepcopy(self.q1), copy.deepcopy(self.q2)
        self.log_alpha, self.target_entropy = torch.zeros(1, requires_grad=True), -action_dim
        self.q_optimizer, self.actor_optimizer = adam(self.q1, self.q2), adam(self.actor)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=3e-4)

    def update(self, batch: Transitions) -> dict[str, float]:
        """One update."""
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            next_actions, next_log_prob = self.actor(batch.next_observations)
            q1, q2 = (q(batch.next_observations, next_actions) for q in (self.target1, self.target2))
            y = batch.rewards + batch.discounts * (torch.min(q1, q2) - alpha * next_log_prob)
        q1, q2 = self.q1(batch.observations, batch.actions), self.q2(batch.observations, batch.actions)
        q_loss = F.mse_loss(q1, y) + F.mse_loss(q2, y)
        descend(self.q_optimizer, q_loss)
        actions, log_prob = self.actor(batch.observations)
        q = torch.min(self.q1(batch.observations, actions), self.q2(batch.observations, actions))
        actor_loss = (alpha * log_prob - q).mean()
        descend(self.actor_optimizer, actor_loss)
        alpha_loss = self.temperature_loss(log_prob.detach())
        descend(self.alpha_optimizer, alpha_loss)
        follow(self.target1, self.q1)
        follow(self.target2, self.q2)
        return {"critic_loss": q_loss.item(), "actor_loss": actor_loss.item(), "alpha_loss": alpha_loss.item()}

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """Of the temperature."""
        return -(self.log_alpha.exp() * (log_prob + self.target_entropy)).mean()
