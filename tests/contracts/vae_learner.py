"""A learner whose first phase trains a VAE of actions, and whose last one trains after the environment steps."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.schedule import Budget, Phase, Shares
from o2o_diffusion.types import Metrics, Transitions

LATENT = 2


class VAELearner(IQL):
    """IQL between a VAE of the dataset's actions and some last updates on everything that was collected."""

    @dataclass(frozen=True)
    class Config(IQL.Config):
        vae_updates: Annotated[int, "updates of the VAE before anything else"] = 5
        last_updates: Annotated[int, "updates after the last environment step"] = 7

    config: Config
    state_fields = (*IQL.state_fields, "counts")

    def build(self) -> None:
        super().build()
        observation_dim, action_dim = self.spec.observation_dim, self.spec.action_dim
        self.encoder = nn.Linear(observation_dim + action_dim, 2 * LATENT)
        self.decoder = nn.Linear(observation_dim + LATENT, action_dim)
        self.vae_optimizer = Optimizer([*self.encoder.parameters(), *self.decoder.parameters()], 1e-3)
        self.counts: dict[str, int] = {}

    def vae_loss(self, batch: Transitions) -> Tensor:
        """E[|a - decode(s, z)|^2 + KL], z ~ encode(s, a)."""
        mean, log_std = self.encoder(torch.cat([batch.observations, batch.actions], -1)).chunk(2, -1)
        z = mean + log_std.exp() * self.rng.normal(*mean.shape)
        error = (self.decoder(torch.cat([batch.observations, z], -1)) - batch.actions).square().sum(-1)
        kl = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).sum(-1)
        return (batch.weights * (error + kl)).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        self.counts[self.phase.name] = self.counts.get(self.phase.name, 0) + 1
        if self.phase.name == "vae":
            return {"vae_loss": self.vae_optimizer.step(self.vae_loss(batch))}
        return super().update(batch)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        size, half = self.config.batch_size, Shares(offline=0.5, online=0.5)
        first = Phase("vae", updates=self.config.vae_updates, batch_size=size)
        last = replace(first, name="last", updates=self.config.last_updates, shares=half)
        return (first, *super().phases(budget), last)
