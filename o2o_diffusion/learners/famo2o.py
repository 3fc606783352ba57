"""FamO2O on IQL: a policy family with per-state selection (Wang et al., 2023), https://arxiv.org/abs/2310.17966.

A universal policy is trained for every inverse temperature beta in a range, and a balance policy selects the beta of
each state to maximize the target critics' estimate of the resulting action. Value and critics are IQL's.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from einops import rearrange
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.networks.actors import Gaussian, GaussianActor, TanhGaussianActor, Temperature
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.types import Metrics, Transitions

ENCODING_DIM = 6
ENCODING_BASE = 10_000.0
TARGET_ENTROPY = -0.5  # of the balance policy: minus half its output dimension


def encode(beta: Tensor) -> Tensor:
    """[..., B] -> [..., B, 6]: sine and cosine of beta / 10000^(2i/6), i = 0, 1, 2, interleaved."""
    powers = torch.arange(ENCODING_DIM // 2, device=beta.device) * (2 / ENCODING_DIM)
    angles = beta[..., None] / ENCODING_BASE**powers  # [..., B, 3]
    return rearrange([angles.sin(), angles.cos()], "kind ... i -> ... (i kind)")


class Family(BaseLearner):
    """Base of the FamO2O learners: the balance policy pi(beta | s) and the training betas.

    Betas lie in `config.inverse_temperature` +- `config.spread`. The universal policy is trained at uniform betas
    offline and at betas sampled from the balance policy online.
    """

    balance: TanhGaussianActor
    balance_optimizer: Optimizer

    def build_balance(self, **options: Any) -> None:
        """Create the balance policy, over x in (-1, 1); `options` are passed to its network."""
        self.balance = TanhGaussianActor(self.spec.observation_dim, 1, self.config.hidden, **options).to(self.device)
        self.balance_optimizer = Optimizer(self.balance.parameters(), self.config.learning_rate)

    def scale(self, x: Tensor) -> Tensor:
        """Map the balance policy's output `x` [..., B, 1] in [-1, 1] to beta [..., B]."""
        return self.config.inverse_temperature + self.config.spread * x.squeeze(-1)

    @torch.no_grad()
    def training_beta(self, batch: Transitions) -> Tensor:
        """[B], the training betas of the universal policy."""
        if self.phase.is_online:
            return self.scale(self.balance(batch.observations).sample(self.rng))
        return self.scale(2 * self.rng.uniform(*batch.rewards.shape, 1) - 1)


class FamO2O(Family, IQL):
    """IQL with a universal policy pi(a | s, e(beta)) and a balance policy pi(beta | s), both trained in both phases."""

    @dataclass(frozen=True)
    class Config(IQL.Config):
        """Beta lies in `inverse_temperature` +- `spread`: [1, 5] for locomotion; AntMaze uses [8, 14], 11 +- 3."""

        spread: Annotated[float, "half-width of the inverse temperature range", Ge(0)] = 2.0
        balance_interval: Annotated[int, "updates per balance policy step; 1 for AntMaze", Ge(1)] = 5

    config: Config

    def build(self) -> None:
        """Create IQL's networks with a universal policy, and a balance policy with its temperature."""
        super().build()
        self.build_balance(state_dependent_std=False, log_std_range=(-10.0, 2.0))
        self.temperature = Temperature().to(self.device)
        self.temperature_optimizer = Optimizer(self.temperature.parameters(), self.config.learning_rate)

    def build_actor(self) -> GaussianActor:
        """The universal policy."""
        dims, c = (self.spec.observation_dim, self.spec.action_dim), self.config
        return GaussianActor(*dims, c.hidden, context_dim=ENCODING_DIM, dropout=c.dropout)

    def balance_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi(x|s) - min Q'(s, a)], beta(x) and a sampled, and the detached log pi(x|s) [B].

        log pi is the log-density of x in (-1, 1), before the affine map to beta.
        """
        x, log_prob = self.balance(batch.observations).sample_with_log_prob(self.rng)
        actions = self.actor(batch.observations, encode(self.scale(x))).sample(self.rng)
        q = self.target_values(batch.observations, actions)
        return (self.actor_weights(batch) * (self.temperature().detach()[..., None] * log_prob - q)).mean(
            -1
        ), log_prob.detach()

    def temperature_loss(self, batch: Transitions, log_prob: Tensor) -> Tensor:
        """E[temperature * (entropy - target entropy)]."""
        return (self.actor_weights(batch) * self.temperature()[..., None] * (-log_prob - TARGET_ENTROPY)).mean(-1)

    def actor_loss(self, batch: Transitions, q: Tensor) -> Tensor:
        """-E[min(exp(beta * A(s, a)), 100) log pi(a|s, e(beta))]."""
        beta = self.training_beta(batch)
        weights = self.advantage_weights(batch, q, beta)
        log_prob = self.actor(batch.observations, encode(beta), rng=self.rng).log_prob(batch.actions)
        return -(self.cloning_weights(batch) * weights * log_prob).mean(-1)

    def update_actor(self, batch: Transitions, q: Tensor) -> Metrics:
        """Update balance policy and temperature every `balance_interval` updates, then the universal policy."""
        actor_loss = self.actor_loss(batch, q)  # with betas from before the balance policy step
        metrics = self.update_balance(batch) if self.num_updates % self.config.balance_interval == 0 else {}
        return metrics | {"actor_loss": self.step_actor(actor_loss)}

    def update_balance(self, batch: Transitions) -> Metrics:
        """Take one step of the balance policy and one of its temperature."""
        balance_loss, log_prob = self.balance_loss(batch)
        return {
            "balance_loss": self.balance_optimizer.step(balance_loss),
            "balance_temperature_loss": self.temperature_optimizer.step(self.temperature_loss(batch, log_prob)),
            "balance_entropy": -log_prob.mean(-1),
        }

    def policy(self, observations: Tensor) -> Gaussian:
        """The universal policy at the balance policy's mode."""
        return self.acting_actor(observations, encode(self.scale(self.balance(observations).mode)))
