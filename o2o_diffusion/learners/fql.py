"""Flow Q-learning, FQL (Park et al., 2025), https://arxiv.org/abs/2502.02538."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.flow import Flow, OneStep, OneStepActor
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.types import Metrics, Transitions


class FQL(BaseLearner):
    """A flow clones the data; a one-step policy is distilled from it and maximizes Q; the same offline and online.

    All losses are of the weights before the update, as in the authors' code. There, evaluation also draws noise; here
    the deterministic action is the one at noise 0. Networks have ReLU instead of GELU.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are the authors'; they tune `alpha` for each task in 0.03 ... 3,000."""

        hidden: Annotated[tuple[int, ...], "hidden layer widths of every network", Ge(1)] = (512, 512, 512, 512)
        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        layer_norm: Annotated[bool, "layer normalization in the critics' hidden layers"] = True
        alpha: Annotated[float, "weight of distillation relative to Q", Ge(0)] = 10.0
        flow_steps: Annotated[int, "Euler steps of the flow", Ge(1)] = 10
        target: Annotated[Literal["mean", "min"], "target critics' aggregate in the backup: mean or min"] = "mean"
        normalize_q: Annotated[bool, "divide the actor's Q by mean |Q|"] = False

    config: Config

    def build(self) -> None:
        """Create the flow, the one-step actor and the critics with targets."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        self.flow = Flow(*dims, c.hidden).to(self.device)
        self.actor = OneStepActor(*dims, c.hidden).to(self.device)
        self.critic = self.build_critic().to(self.device)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.flow_optimizer = Optimizer(self.flow.parameters(), c.learning_rate)
        self.actor_optimizer = Optimizer(self.actor.parameters(), c.learning_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)

    def noise(self, batch: Transitions) -> Tensor:
        """[B, A] of N(0, I)."""
        return self.rng.normal(*batch.actions.shape)

    def flow_loss(self, batch: Transitions) -> Tensor:
        """E[|v(s, x_t, t) - (a - x_0)|^2 / A], x_t = (1 - t) x_0 + t a, x_0 ~ N(0, I), t ~ U(0, 1)."""
        start, t = self.noise(batch), self.rng.uniform(*batch.rewards.shape, 1)
        velocity = self.flow(batch.observations, (1 - t) * start + t * batch.actions, t)
        error = (velocity - (batch.actions - start)).square().mean(-1)
        return (self.cloning_weights(batch) * batch.regularization * error).mean(-1)

    def actor_loss(self, batch: Transitions) -> Tensor:
        """E[alpha |mu(s, z) - flow(s, z)|^2 / A - mean Q(s, mu(s, z))], z ~ N(0, I), with actions clipped in Q."""
        z = self.noise(batch)
        actions = self.actor(batch.observations, z)
        flowed = self.flow.integrate(batch.observations, z, self.config.flow_steps)
        distillation = batch.regularization * (actions - flowed).square().mean(-1)
        q = self.critic(batch.observations, actions.clamp(-1, 1)).mean(-2)
        scale = 1 / mean(q.abs()) if self.config.normalize_q else torch.ones_like(q[..., 0])
        return (self.actor_weights(batch) * (self.config.alpha * distillation - scale[..., None] * q)).mean(-1)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(r + discount * mean Q'(s', mu(s', z)) - Q(s, a))^2], summed over the ensemble."""
        with torch.no_grad():
            next_actions = self.actor(batch.next_observations, self.noise(batch)).clamp(-1, 1)
            next_q = self.target_critic(batch.next_observations, next_actions)
            next_v = next_q.mean(-2) if self.config.target == "mean" else next_q.amin(-2)
            target_q = batch.rewards + batch.discounts * next_v
        q = self.critic(batch.observations, batch.actions)  # [..., E, B]
        return (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        """Compute all losses, then step flow, actor and critics, then update the targets."""
        critic_loss, flow_loss, actor_loss = self.critic_loss(batch), self.flow_loss(batch), self.actor_loss(batch)
        metrics = {"flow_loss": self.flow_optimizer.step(flow_loss)}
        metrics["actor_loss"] = self.actor_optimizer.step(actor_loss)
        metrics["critic_loss"] = self.critic_optimizer.step(critic_loss)
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return metrics

    def policy(self, observations: Tensor) -> OneStep:
        """The one-step policy."""
        return OneStep(self.actor, observations, self.spec.action_dim)
