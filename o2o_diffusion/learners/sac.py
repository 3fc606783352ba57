"""Soft actor-critic (Haarnoja et al., 2018), https://arxiv.org/abs/1812.05905, with an ensemble of critics.

With many critics and random target subsets it is REDQ, https://arxiv.org/abs/2101.05982 (`configs/learner/redq.yaml`);
with layer normalization and half-offline, half-online batches as well, it is RLPD, https://arxiv.org/abs/2302.02948
(`configs/learner/rlpd.yaml`).
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor, Temperature
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.types import Metrics, Transitions


class SAC(BaseLearner):
    """Maximizes return plus `temperature` times entropy; the temperature is tuned to reach a target entropy.

    Offline rows, if any, are used like all others: there is no conservatism and no cloning, so `batch.regularization`
    has no effect.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are SAC's; REDQ's and RLPD's are in their YAML files."""

        actor_learning_rate: Annotated[
            float | None, "learning rate of actor and temperature; null: learning_rate", Gt(0)
        ] = None
        mean_q: Annotated[bool, "the actor maximizes the mean of all critics instead of their minimum"] = False
        actor_interval: Annotated[int, "critic steps per actor and temperature step", Ge(1)] = 1
        backup_actions: Annotated[int, "number of next actions in the max-Q backup", Ge(1)] = 1
        entropy_backup: Annotated[bool, "include the next action's entropy in the critics' target"] = True
        target_entropy: Annotated[float, "target entropy per action dimension"] = -1.0
        pretrain: Annotated[bool, "update on offline rows before the online phase"] = True
        random_steps: Annotated[int, "initial environment steps with uniform actions and no updates", Ge(0)] = 0

    config: Config
    state_fields = (*BaseLearner.state_fields, "num_updates")

    def build(self) -> None:
        """Create an actor, E critics with targets, and a temperature."""
        c = self.config
        self.critic = self.build_critic().to(self.device)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor = self.build_actor().to(self.device)
        self.temperature = Temperature().to(self.device)
        actor_rate = c.actor_learning_rate or c.learning_rate
        self.actor_optimizer = Optimizer(self.actor.parameters(), actor_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)
        self.temperature_optimizer = Optimizer(self.temperature.parameters(), actor_rate)
        self.num_updates = 0

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are passed to its constructor."""
        dims = self.spec.observation_dim, self.spec.action_dim
        options = {"output_gain": 0.01, **options}
        return TanhGaussianActor(*dims, self.config.hidden, **options)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(target - Q(s, a))^2], summed over the ensemble."""
        target_q = self.target_q(batch)
        q = self.critic(batch.observations, batch.actions)  # [..., E, B]
        return (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[B], r + discount * max_a' min_subset Q'(s', a'), a' ~ policy, with an entropy bonus if `entropy_backup`."""
        next_q, log_prob = self.next_q(batch, self.config.subset_size)
        return self.backup(batch, next_q.amin(-3), log_prob)

    def next_q(self, batch: Transitions, size: int | None) -> tuple[Tensor, Tensor]:
        """Q'(s', a') [..., M, B, N] of N actions a' ~ policy by `size` target critics (None: all); log pi(a'|s')."""
        policy = self.policy(batch.next_observations).repeat(self.config.backup_actions)
        next_actions, log_prob = policy.sample_with_log_prob(self.rng)  # [..., B, N, A], [..., B, N]
        return self.target_critic(batch.next_observations, next_actions, self.draw_members(size)), log_prob

    def backup(self, batch: Transitions, next_q: Tensor, log_prob: Tensor) -> Tensor:
        """[B], r + discount * max_a' next_q [..., B, N], with an entropy bonus if `entropy_backup`."""
        if self.config.entropy_backup:
            next_q = next_q - self.temperature()[..., None, None] * log_prob
        return batch.rewards + batch.discounts * next_q.amax(-1)

    def actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi(a|s) - Q(s, a)], a ~ policy, and the detached log pi(a|s) [B]."""
        actions, log_prob = self.policy(batch.observations).sample_with_log_prob(self.rng)
        q = self.critic(batch.observations, actions)
        q = q.mean(-2) if self.config.mean_q else q.amin(-2)
        loss = (self.actor_weights(batch) * (self.temperature().detach()[..., None] * log_prob - q)).mean(-1)
        return loss, log_prob.detach()

    def temperature_loss(self, batch: Transitions, log_prob: Tensor) -> Tensor:
        """E[temperature * (entropy - target entropy)]."""
        target_entropy = self.config.target_entropy * self.spec.action_dim
        return (self.actor_weights(batch) * self.temperature()[..., None] * (-log_prob - target_entropy)).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        """Update critics and targets and, every `actor_interval` updates, actor and temperature."""
        self.num_updates += 1
        metrics = self.update_critic(batch)
        return metrics | (self.update_actor(batch) if self.num_updates % self.config.actor_interval == 0 else {})

    def update_critic(self, batch: Transitions) -> Metrics:
        """Take one critic step, then update the targets."""
        critic_loss = self.critic_optimizer.step(self.critic_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": critic_loss}

    def update_actor(self, batch: Transitions) -> Metrics:
        """Take one step of the actor and one of the temperature."""
        actor_loss, log_prob = self.actor_loss(batch)
        return {
            "actor_loss": self.actor_optimizer.step(actor_loss),
            "temperature_loss": self.temperature_optimizer.step(self.temperature_loss(batch, log_prob)),
            "entropy": -log_prob.mean(-1),
            "temperature": self.temperature().detach(),
        }

    def policy(self, observations: Tensor) -> TanhGaussian:
        """The actor's action distribution."""
        return self.actor(observations)

    @property
    def random_steps(self) -> int:
        """`random_steps` of the settings."""
        return self.config.random_steps

    @property
    def min_warmup_steps(self) -> int:
        """`random_steps` of the settings, because random steps have no updates."""
        return self.config.random_steps

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The default phases, without pretraining if `pretrain` is false."""
        return super().phases(budget if self.config.pretrain else replace(budget, pretrain_updates=0))
