"""Plain FamO2O on IQL."""

import torch
from torch import Tensor

from benchmarks.reference.iql import IQL
from benchmarks.reference.networks import GaussianActor, TanhGaussianActor, adam, descend
from o2o_diffusion.types import Transitions

ENCODING = 6


def encode(beta: Tensor) -> Tensor:
    """[B] -> [B, 6]: sine and cosine of beta at three frequencies."""
    angles = beta[:, None] / 10_000 ** (2 * torch.arange(ENCODING // 2) / ENCODING)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class FamO2O(IQL):
    """IQL with a universal policy and, every fifth update, a step of the balance policy and its temperature."""

    def __init__(self, observation_dim: int, action_dim: int, width: int):
        super().__init__(observation_dim, action_dim, width)
        self.actor = GaussianActor(observation_dim + ENCODING, action_dim, width)
        self.balance = TanhGaussianActor(observation_dim, 1, width, free_std=True)
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.actor_optimizer, self.balance_optimizer = adam(self.actor), adam(self.balance)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=3e-4)
        self.updates = 0

    def update_actor(self, batch: Transitions, advantage: Tensor) -> dict[str, float]:
        """Advantage-weighted regression at random betas."""
        beta = 1 + 4 * torch.rand(len(batch))
        weight = (beta * advantage).exp().clamp(max=100)
        policy = self.actor(torch.cat([batch.observations, encode(beta)], dim=-1))
        loss = -(weight * policy.log_prob(batch.actions).sum(-1)).mean()
        descend(self.actor_optimizer, loss)
        self.updates += 1
        metrics = self.update_balance(batch) if self.updates % 5 == 0 else {}
        return {"actor_loss": loss.item(), **metrics}

    def update_balance(self, batch: Transitions) -> dict[str, float]:
        """Betas that the target critics prefer."""
        x, log_prob = self.balance(batch.observations)
        actions = self.actor(torch.cat([batch.observations, encode(3 + 2 * x.squeeze(-1))], dim=-1)).rsample()
        q = torch.min(self.target1(batch.observations, actions), self.target2(batch.observations, actions))
        loss = (self.log_alpha.exp().item() * log_prob - q).mean()
        descend(self.balance_optimizer, loss)
        alpha_loss = -(self.log_alpha.exp() * (log_prob.detach() - 0.5)).mean()
        descend(self.alpha_optimizer, alpha_loss)
        return {"balance_loss": loss.item(), "alpha_loss": alpha_loss.item()}
