"""Soft actor-critic (Haarnoja et al., 2018), https://arxiv.org/abs/1812.05905, with an ensemble of critics.

With many critics, random target subsets and layer normalisation it is REDQ, https://arxiv.org/abs/2101.05982, and on
half offline, half online rows RLPD, https://arxiv.org/abs/2302.02948 (`configs/learner/rlpd.yaml`).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor, Temperature
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.protocols import Budget, Phase
from o2o_diffusion.types import Metrics, Transitions


class SAC(BaseLearner):
    """Maximises return plus `temperature` times entropy, which is driven to its target by the temperature.

    Offline rows, where there are any, are trained on like the others: there is no conservatism and no cloning, so
    `batch.regularization` has nothing to multiply.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are SAC's; RLPD's are in its YAML file."""

        ensemble_size: Annotated[int, "number of critics"] = 2
        subset_size: Annotated[int, "target critics in the minimum, drawn anew at each update"] = 2
        layer_norm: Annotated[bool, "layer normalisation in the critics' hidden layers"] = False
        mean_q: Annotated[bool, "the actor ascends the mean of all critics, not their minimum"] = False
        actor_interval: Annotated[int, "critic steps per step of actor and temperature"] = 1
        entropy_backup: Annotated[bool, "count the next action's entropy in the critics' target"] = True
        target_entropy: Annotated[float, "entropy that the temperature aims at, per action dimension"] = -1.0
        pretrain: Annotated[bool, "update on offline rows before going online"] = True
        random_steps: Annotated[int, "environment steps with uniformly random actions at the start"] = 0

    config: Config
    counters = (*BaseLearner.counters, "num_updates", "num_actions")

    def build(self) -> None:
        """One actor, E critics with targets, one temperature."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        critic = Critic(*dims, c.hidden, ensemble_size=c.ensemble_size, layer_norm=c.layer_norm)
        self.actor = TanhGaussianActor(*dims, c.hidden, output_gain=0.01).to(self.device)
        self.critic = critic.to(self.device)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.temperature = Temperature().to(self.device)
        self.actor_optimizer = Optimizer(self.actor.parameters(), c.learning_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)
        self.temperature_optimizer = Optimizer(self.temperature.parameters(), c.learning_rate)
        self.num_updates = self.num_actions = 0

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(r + discount * min_subset Q'(s', a') - Q(s, a))^2], a' ~ policy, summed over the ensemble."""
        with torch.no_grad():
            next_actions, log_prob = self.policy(batch.next_observations).sample_with_log_prob(self.noise)
            next_v = self.subset(self.target_critic(batch.next_observations, next_actions)).amin(0)
            if self.config.entropy_backup:
                next_v = next_v - self.temperature() * log_prob
            target_q = batch.rewards + self.config.discount * batch.continues * next_v
        q = self.critic(batch.observations, batch.actions)  # [E, B]
        return (batch.weights * (q - target_q).square()).sum(0).mean()

    def subset(self, q: Tensor) -> Tensor:
        """`subset_size` rows of q [E, B], drawn without replacement; the same on every process."""
        if self.config.subset_size == len(q):
            return q
        members = torch.randperm(len(q), generator=self.noise.generator, device=q.device)
        return q[members[: self.config.subset_size]]

    def actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi(a|s) - Q(s, a)], a ~ policy; and the detached log pi(a|s) [B]."""
        actions, log_prob = self.policy(batch.observations).sample_with_log_prob(self.noise)
        q = self.critic(batch.observations, actions)
        q = q.mean(0) if self.config.mean_q else q.amin(0)
        loss = (batch.weights * (self.temperature().detach() * log_prob - q)).mean()
        return loss, log_prob.detach()

    def temperature_loss(self, batch: Transitions, log_prob: Tensor) -> Tensor:
        """E[temperature * (entropy - target entropy)]."""
        target_entropy = self.config.target_entropy * self.spec.action_dim
        return (batch.weights * self.temperature() * (-log_prob - target_entropy)).mean()

    def update(self, batch: Transitions) -> Metrics:
        """Critic, target; every `actor_interval` updates also actor and temperature."""
        self.num_updates += 1
        metrics = {"critic_loss": self.critic_optimizer.step(self.critic_loss(batch))}
        polyak_update(self.target_critic, self.critic, self.config.tau)
        if self.num_updates % self.config.actor_interval == 0:
            actor_loss, log_prob = self.actor_loss(batch)
            metrics["actor_loss"] = self.actor_optimizer.step(actor_loss)
            metrics["temperature_loss"] = self.temperature_optimizer.step(self.temperature_loss(batch, log_prob))
            metrics |= {"entropy": -log_prob.mean(), "temperature": self.temperature().detach()}
        return metrics

    def policy(self, observations: Tensor) -> TanhGaussian:
        """The actor's distribution of actions."""
        return self.actor(observations)

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """As every learner; the first `random_steps` exploring actions are uniform."""
        if deterministic or self.num_actions >= self.config.random_steps:
            return super().act(observations, deterministic=deterministic)
        self.num_actions += len(observations)
        return 2 * self.acting_noise.uniform(len(observations), self.spec.action_dim) - 1

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """As every learner, without pretraining unless the settings ask for it."""
        return tuple(p for p in super().phases(budget) if self.config.pretrain or p.name != "pretrain")
