"""Soft actor-critic (Haarnoja et al., 2018), https://arxiv.org/abs/1812.05905, with an ensemble of critics.

With many critics and random target subsets it is REDQ, https://arxiv.org/abs/2101.05982 (`configs/learner/redq.yaml`);
with layer normalisation too, on half offline, half online rows, RLPD, https://arxiv.org/abs/2302.02948
(`configs/learner/rlpd.yaml`).
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor, Temperature
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.types import Metrics, Transitions


class SAC(BaseLearner):
    """Maximises return plus `temperature` times entropy, which is driven to its target by the temperature.

    Offline rows, where there are any, are trained on like the others: there is no conservatism and no cloning, so
    `batch.regularization` has nothing to multiply.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are SAC's; REDQ's and RLPD's are in their YAML files."""

        actor_learning_rate: Annotated[float | None, "rate for actor and temperature; null: learning_rate"] = None
        critic_hidden: Annotated[tuple[int, ...] | None, "widths of the critics' hidden layers; null: as hidden"] = None
        ensemble_size: Annotated[int, "number of critics"] = 2
        subset_size: Annotated[int, "target critics in the minimum, drawn anew at each update"] = 2
        subset_replacement: Annotated[bool, "draw the same target critic more than once (WSRL)"] = False
        layer_norm: Annotated[bool, "layer normalisation in the critics' hidden layers"] = False
        mean_q: Annotated[bool, "the actor ascends the mean of all critics, not their minimum"] = False
        actor_interval: Annotated[int, "critic steps per step of actor and temperature"] = 1
        backup_actions: Annotated[int, "next actions of which the best counts in the critics' target"] = 1
        entropy_backup: Annotated[bool, "count the next action's entropy in the critics' target"] = True
        target_entropy: Annotated[float, "entropy that the temperature aims at, per action dimension"] = -1.0
        pretrain: Annotated[bool, "update on offline rows before going online"] = True
        random_steps: Annotated[int, "first environment steps, uniformly random and without updates"] = 0

    config: Config
    counters = (*BaseLearner.counters, "num_updates", "num_actions")

    def build(self) -> None:
        """One actor, E critics with targets, one temperature."""
        c = self.config
        self.critic = self.build_critic().to(self.device)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor = self.build_actor().to(self.device)
        self.temperature = Temperature().to(self.device)
        actor_rate = c.actor_learning_rate or c.learning_rate
        self.actor_optimizer = Optimizer(self.actor.parameters(), actor_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)
        self.temperature_optimizer = Optimizer(self.temperature.parameters(), actor_rate)
        self.num_updates = self.num_actions = 0

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are its own."""
        dims = self.spec.observation_dim, self.spec.action_dim
        options = {"output_gain": 0.01, **options}
        return TanhGaussianActor(*dims, self.config.hidden, **options)

    def build_critic(self, **options: Any) -> Critic:
        """The ensemble of critics; `options` are its own."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        hidden = c.critic_hidden or c.hidden
        return Critic(*dims, hidden, ensemble_size=c.ensemble_size, layer_norm=c.layer_norm, **options)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(target - Q(s, a))^2], summed over the ensemble."""
        target_q = self.target_q(batch)
        q = self.critic(batch.observations, batch.actions)  # [E, B]
        return (batch.weights * (q - target_q).square()).sum(0).mean()

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[B], r + discount * max_a' min_subset Q'(s', a'), a' ~ policy, with the entropy there if it counts."""
        c = self.config
        policy = self.policy(batch.next_observations).repeat(c.backup_actions)
        next_actions, log_prob = policy.sample_with_log_prob(self.noise)  # [B, N, A], [B, N]
        next_q = self.target_critic(batch.next_observations, next_actions, self.draw_members(c.subset_size)).amin(0)
        if c.entropy_backup:
            next_q = next_q - self.temperature() * log_prob
        return batch.rewards + c.discount * batch.continues * next_q.amax(1)

    def draw_members(self, size: int | None) -> Tensor | None:
        """[size] critics of the ensemble, drawn alike on every process; None stands for all of them."""
        c, generator = self.config, self.noise.generator
        if size is None or (size >= c.ensemble_size and not c.subset_replacement):
            return None
        if c.subset_replacement:
            return torch.randint(c.ensemble_size, (size,), generator=generator, device=self.noise.device)
        return torch.randperm(c.ensemble_size, generator=generator, device=self.noise.device)[:size]

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
        metrics = self.update_critic(batch)
        return metrics | (self.update_actor(batch) if self.num_updates % self.config.actor_interval == 0 else {})

    def update_critic(self, batch: Transitions) -> Metrics:
        """One step of the critics, which their targets follow."""
        critic_loss = self.critic_optimizer.step(self.critic_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return {"critic_loss": critic_loss}

    def update_actor(self, batch: Transitions) -> Metrics:
        """One step of the actor and of the temperature."""
        actor_loss, log_prob = self.actor_loss(batch)
        return {
            "actor_loss": self.actor_optimizer.step(actor_loss),
            "temperature_loss": self.temperature_optimizer.step(self.temperature_loss(batch, log_prob)),
            "entropy": -log_prob.mean(),
            "temperature": self.temperature().detach(),
        }

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
        """As every learner; nothing is learned in the random steps, nor offline unless the settings ask for it."""
        budget = replace(budget, warmup_steps=max(budget.warmup_steps, self.config.random_steps))
        return tuple(p for p in super().phases(budget) if self.config.pretrain or p.name != "pretrain")
