"""FamO2O: a family of policies and a choice among them per state (Wang et al., 2023), https://arxiv.org/abs/2310.17966.

On IQL. A universal policy is trained for every inverse temperature beta in a range, and a balance policy picks the
beta of a state by what the target critics think of the action that comes out. Values and critics are IQL's.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.networks.actors import Gaussian, GaussianActor, TanhGaussianActor, Temperature
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.types import Metrics, Transitions

ENCODING_DIM = 6
ENCODING_BASE = 10_000.0
TARGET_ENTROPY = -0.5  # of the balance policy: minus half its dimension


def encode(beta: Tensor) -> Tensor:
    """[B] -> [B, 6]: sine and cosine of beta / 10000^(2i/6), i = 0, 1, 2, interleaved; beta is not rescaled."""
    powers = torch.arange(ENCODING_DIM // 2, device=beta.device) * (2 / ENCODING_DIM)
    angles = beta[:, None] / ENCODING_BASE**powers  # [B, 3]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Family(BaseLearner):
    """What is the same on every base: the balance policy pi(beta | s), and the betas of training.

    Betas lie in `config.inverse_temperature` +- `config.spread`. The universal policy sees uniform ones offline and
    the balance policy's own online.
    """

    balance: TanhGaussianActor
    balance_optimizer: Optimizer
    is_online: bool

    def build_balance(self, **options: Any) -> None:
        """The balance policy, over x in (-1, 1); `options` are its network's."""
        self.balance = TanhGaussianActor(self.spec.observation_dim, 1, self.config.hidden, **options).to(self.device)
        self.balance_optimizer = Optimizer(self.balance.parameters(), self.config.learning_rate)
        self.is_online = False

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """As the base; with environment steps begins the online choice of betas."""
        super().begin_phase(phase, replay)
        self.is_online = phase.env_steps > 0

    def scale(self, x: Tensor) -> Tensor:
        """x [B, 1] in [-1, 1], the balance policy's output, as beta [B]."""
        return self.config.inverse_temperature + self.config.spread * x.squeeze(1)

    @torch.no_grad()
    def training_beta(self, batch: Transitions) -> Tensor:
        """[B], the betas at which the universal policy is trained."""
        if self.is_online:
            return self.scale(self.balance(batch.observations).sample(self.noise))
        return self.scale(2 * self.noise.uniform(len(batch), 1) - 1)


class FamO2O(Family, IQL):
    """IQL with a universal policy pi(a | s, e(beta)) and a balance policy pi(beta | s), both trained in both phases."""

    @dataclass(frozen=True)
    class Config(IQL.Config):
        """Beta lies in `inverse_temperature` +- `spread`: [1, 5] for locomotion; AntMaze has [8, 14], 11 +- 3."""

        spread: Annotated[float, "half the width of the range of inverse temperatures"] = 2.0
        balance_interval: Annotated[int, "updates per step of the balance policy; AntMaze 1"] = 5

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    counters = (*IQL.counters, "is_online")

    def build(self) -> None:
        """IQL's networks, with a universal policy; a balance policy and its temperature."""
        super().build()
        self.build_balance(state_dependent_std=False, log_std_range=(-10.0, 2.0))
        self.temperature = Temperature().to(self.device)
        self.temperature_optimizer = Optimizer(self.temperature.parameters(), self.config.learning_rate)

    def build_actor(self) -> GaussianActor:
        """The universal policy."""
        dims, c = (self.spec.observation_dim, self.spec.action_dim), self.config
        return GaussianActor(*dims, c.hidden, context_dim=ENCODING_DIM, dropout=c.dropout)

    def balance_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi(x|s) - min Q'(s, a)], beta(x) and a sampled; and the detached log pi(x|s) [B].

        log pi is the density of x in (-1, 1), before the affine map to beta.
        """
        x, log_prob = self.balance(batch.observations).sample_with_log_prob(self.noise)
        actions = self.actor(batch.observations, encode(self.scale(x))).sample(self.noise)
        q = self.target_critic(batch.observations, actions).amin(0)
        return (batch.weights * (self.temperature().detach() * log_prob - q)).mean(), log_prob.detach()

    def temperature_loss(self, batch: Transitions, log_prob: Tensor) -> Tensor:
        """E[temperature * (entropy - target entropy)]."""
        return (batch.weights * self.temperature() * (-log_prob - TARGET_ENTROPY)).mean()

    def actor_loss(self, batch: Transitions, q: Tensor) -> Tensor:
        """-E[min(exp(beta * A(s, a)), 100) log pi(a|s, e(beta))]."""
        beta = self.training_beta(batch)
        weights = self.advantage_weights(batch, q, beta)
        log_prob = self.actor(batch.observations, encode(beta), noise=self.noise).log_prob(batch.actions)
        return -(batch.weights * weights * log_prob).mean()

    def update_actor(self, batch: Transitions, q: Tensor) -> Metrics:
        """Every `balance_interval` updates balance policy and temperature, then the universal policy."""
        actor_loss = self.actor_loss(batch, q)  # at betas of the balance policy before its step
        metrics = self.update_balance(batch) if self.num_updates % self.config.balance_interval == 0 else {}
        return metrics | {"actor_loss": self.step_actor(actor_loss)}

    def update_balance(self, batch: Transitions) -> Metrics:
        """One step of the balance policy and of its temperature."""
        balance_loss, log_prob = self.balance_loss(batch)
        return {
            "balance_loss": self.balance_optimizer.step(balance_loss),
            "balance_temperature_loss": self.temperature_optimizer.step(self.temperature_loss(batch, log_prob)),
            "balance_entropy": -log_prob.mean(),
        }

    def policy(self, observations: Tensor) -> Gaussian:
        """The universal policy at the balance policy's most probable beta."""
        return self.acting_actor(observations, encode(self.scale(self.balance(observations).mode)))
