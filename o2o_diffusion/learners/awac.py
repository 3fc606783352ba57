"""Advantage-weighted actor-critic (Nair et al., 2020), https://arxiv.org/abs/2006.09359."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import Gaussian, GaussianActor
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.types import Metrics, Transitions

MAX_WEIGHT = 100.0


class AWAC(BaseLearner):
    """Regresses on batch actions, weighted by their advantage over policy actions; the same offline and online.

    The weighted regression is the policy improvement itself, so `batch.regularization` has no effect. The policy is
    IQL's, with a bounded mean; its samples are clipped before the critics evaluate them.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are CORL's; AntMaze and Adroit use temperature 0.1."""

        hidden: Annotated[tuple[int, ...], "hidden layer widths of every network", Ge(1)] = (256, 256, 256)
        temperature: Annotated[
            float, "temperature (lambda) of the advantage weights; larger is closer to cloning", Gt(0)
        ] = 1.0

    config: Config

    def build(self) -> None:
        """Create an actor and two critics with targets."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        self.actor = GaussianActor(*dims, c.hidden).to(self.device)
        self.critic = self.build_critic().to(self.device)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Optimizer(self.actor.parameters(), c.learning_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)

    @torch.no_grad()
    def sample(self, observations: Tensor) -> Tensor:
        """[B, A], one clipped policy action per state."""
        return self.policy(observations).sample(self.rng).clamp(-1, 1)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(r + discount * min Q'(s', a') - Q(s, a))^2], a' ~ policy, without entropy, summed over the ensemble."""
        with torch.no_grad():
            next_v = self.target_values(batch.next_observations, self.sample(batch.next_observations))
            target_q = batch.rewards + batch.discounts * next_v
        q = self.critic(batch.observations, batch.actions)  # [..., E, B]
        return (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)

    @torch.no_grad()
    def advantage_weights(self, batch: Transitions) -> Tensor:
        """[B], min(exp(A / temperature), 100), A = min Q(s, a) - min Q(s, a~), one a~ ~ policy."""
        q = self.values(batch.observations, batch.actions)
        v = self.values(batch.observations, self.sample(batch.observations))
        return ((q - v) / self.config.temperature).exp().clamp(max=MAX_WEIGHT)

    def actor_loss(self, batch: Transitions) -> Tensor:
        """-E[min(exp(A / temperature), 100) log pi(a|s)] (equation 13)."""
        log_prob = self.policy(batch.observations).log_prob(batch.actions)
        return -(self.cloning_weights(batch) * self.advantage_weights(batch) * log_prob).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        """Update the critics, the actor with the new critics, then the targets."""
        critic_loss = self.critic_optimizer.step(self.critic_loss(batch))
        actor_loss = self.actor_optimizer.step(self.actor_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": critic_loss, "actor_loss": actor_loss}

    def policy(self, observations: Tensor) -> Gaussian:
        """The actor's action distribution."""
        return self.actor(observations)
