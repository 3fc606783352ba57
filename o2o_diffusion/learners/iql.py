"""Implicit Q-learning (Kostrikov et al., 2021), https://arxiv.org/abs/2110.06169."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import Gaussian, GaussianActor
from o2o_diffusion.networks.critics import Value
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.types import Metrics, Transitions

MAX_WEIGHT = 100.0


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """|expectile - 1[difference < 0]| * difference^2, elementwise (equation 5)."""
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


class IQL(BaseLearner):
    """Learns from dataset actions only, with the same objective and constant learning rates offline and online.

    Advantage-weighted regression is the policy improvement itself, not an added constraint, so `batch.regularization`
    has no effect. With `actor_tau` below 1, which is not in the paper, a running average of the actor acts and is
    evaluated, because the score of the latest actor swings by tens of points between updates.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are the paper's for locomotion; AntMaze uses expectile 0.9 and inverse temperature 10."""

        expectile: Annotated[float, "expectile of Q that V regresses on, in (0, 1)", Interval(gt=0, lt=1)] = 0.7
        inverse_temperature: Annotated[
            float, "inverse temperature of the advantage weights; 0 is behavior cloning", Ge(0)
        ] = 3.0
        dropout: Annotated[
            float, "dropout rate in the actor's hidden layers; 0.1 for Adroit and Kitchen", Interval(ge=0, lt=1)
        ] = 0.0
        actor_tau: Annotated[
            float, "Polyak averaging coefficient of the acting policy; 1 is the latest actor", Interval(gt=0, le=1)
        ] = 1.0

    config: Config
    state_fields = (*BaseLearner.state_fields, "num_updates")

    def build(self) -> None:
        """Create an actor and its average, a value network, and two critics with targets."""
        c = self.config
        self.actor = self.build_actor().to(self.device)
        self.acting_actor = deepcopy(self.actor).requires_grad_(False)
        self.value = Value(self.spec.observation_dim, c.hidden).to(self.device)
        self.critic = self.build_critic().to(self.device)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Optimizer(self.actor.parameters(), c.learning_rate)
        self.value_optimizer = Optimizer(self.value.parameters(), c.learning_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)
        self.num_updates = 0

    def build_actor(self) -> GaussianActor:
        """The policy network."""
        c = self.config
        return GaussianActor(self.spec.observation_dim, self.spec.action_dim, c.hidden, dropout=c.dropout)

    def value_loss(self, batch: Transitions, q: Tensor) -> Tensor:
        """E[L^expectile(q - V(s))], q = min Q'(s, a) [B]."""
        return (batch.weights * expectile_loss(q - self.value(batch.observations), self.config.expectile)).mean(-1)

    def actor_loss(self, batch: Transitions, q: Tensor) -> Tensor:
        """-E[min(exp(inverse_temperature * A(s, a)), 100) log pi(a|s)], A = q - V(s)."""
        weights = self.advantage_weights(batch, q, self.config.inverse_temperature)
        log_prob = self.actor(batch.observations, rng=self.rng).log_prob(batch.actions)
        return -(self.cloning_weights(batch) * weights * log_prob).mean(-1)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(r + discount * V(s') - Q(s, a))^2], summed over the ensemble."""
        with torch.no_grad():
            target_q = batch.rewards + batch.discounts * self.value(batch.next_observations)
        q = self.critic(batch.observations, batch.actions)  # [..., E, B]
        return (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[B], min Q'(s, a)."""
        return self.target_values(batch.observations, batch.actions)

    @torch.no_grad()
    def advantage_weights(self, batch: Transitions, q: Tensor, inverse_temperature: Tensor | float) -> Tensor:
        """[B], min(exp(inverse_temperature * A), 100), A = q - V(s)."""
        advantages = q - self.value(batch.observations)
        return (inverse_temperature * advantages).exp().clamp(max=MAX_WEIGHT)

    def update(self, batch: Transitions) -> Metrics:
        """Update value, actor and critics with the new value, then targets: the order of the authors' code."""
        q = self.target_q(batch)
        value_loss = self.value_optimizer.step(self.value_loss(batch, q))
        metrics = self.update_actor(batch, q)
        critic_loss = self.critic_optimizer.step(self.critic_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return {"value_loss": value_loss, "critic_loss": critic_loss, "q": q.mean(-1)} | metrics

    def update_actor(self, batch: Transitions, q: Tensor) -> Metrics:
        """Take one policy step."""
        return {"actor_loss": self.step_actor(self.actor_loss(batch, q))}

    def step_actor(self, loss: Tensor) -> Tensor:
        """Take one actor step, then update `acting_actor`, which starts as the plain mean of all actors so far."""
        loss = self.actor_optimizer.step(loss)
        self.num_updates += 1
        polyak_update(self.acting_actor, self.actor, max(self.config.actor_tau, 1 / self.num_updates))
        return loss

    def policy(self, observations: Tensor) -> Gaussian:
        """The action distribution of `acting_actor`."""
        return self.acting_actor(observations)
