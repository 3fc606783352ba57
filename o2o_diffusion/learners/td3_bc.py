"""TD3+BC (Fujimoto and Gu, 2021), https://arxiv.org/abs/2106.06860: TD3 with one term that clones.

Without that term (`bc: 0`) it is TD3, https://arxiv.org/abs/1802.09477. With whole batches, of which those of recent
rows are not cloned, it is GCTD3BC of APL, https://arxiv.org/abs/2303.07693 (`configs/learner/gctd3bc.yaml`).
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import Deterministic, DeterministicActor
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.schedule import Budget, Phase, Shares
from o2o_diffusion.types import Metrics, Transitions


class TD3BC(BaseLearner):
    """A deterministic policy that ascends Q and stays near the rows' actions; the same offline and online.

    Q is scaled by lambda = alpha / mean |Q|, so that `alpha` weighs it against cloning whatever the rewards' scale;
    where nothing clones lambda is 1, as in TD3, because Adam does not feel a scale. Cloning is multiplied by
    `batch.regularization`, lambda is not. As TD3+BC, TD3 standardises observations here too.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are the paper's; what serves APL is neutral."""

        alpha: Annotated[float, "weight of Q, whose mean size is scaled to it, against cloning"] = 2.5
        bc: Annotated[float, "weight of cloning; 0: TD3"] = 1.0
        actor_interval: Annotated[int, "critic steps per step of actor and targets"] = 2
        target_noise: Annotated[float, "spread of the noise that smooths the target action"] = 0.2
        noise_clip: Annotated[float, "bound of that noise"] = 0.5
        exploration_noise: Annotated[float, "spread of the noise on exploring actions"] = 0.1
        online_share: Annotated[float, "share of online rows while fine-tuning"] = 0.5
        whole_batches: Annotated[bool, "draw each batch from one pool, with the shares as probabilities"] = False
        block_steps: Annotated[int, "environment steps between blocks of updates; 0: updates after every step"] = 0

    config: Config
    counters = (*BaseLearner.counters, "num_updates")

    def build(self) -> None:
        """An actor and two critics, each with a target."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        self.actor = DeterministicActor(*dims, c.hidden).to(self.device)
        self.critic = Critic(*dims, c.hidden).to(self.device)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Optimizer(self.actor.parameters(), c.learning_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)
        self.exploration = torch.tensor(c.exploration_noise, device=self.device).log()
        self.num_updates = 0

    @torch.no_grad()
    def target_actions(self, observations: Tensor) -> Tensor:
        """[B, A], the target policy's actions with clipped noise: similar actions should have similar values."""
        noise = self.config.target_noise * self.noise.normal(len(observations), self.spec.action_dim)
        actions = self.target_actor(observations)
        return (actions + noise.clamp(-self.config.noise_clip, self.config.noise_clip)).clamp(-1, 1)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(r + discount * min Q'(s', a') - Q(s, a))^2], a' the smoothed target action, summed over the ensemble."""
        with torch.no_grad():
            next_actions = self.target_actions(batch.next_observations)
            next_v = self.target_critic(batch.next_observations, next_actions).amin(0)
            target_q = batch.rewards + self.config.discount * batch.continues * next_v
        q = self.critic(batch.observations, batch.actions)  # [E, B]
        return (batch.weights * (q - target_q).square()).sum(0).mean()

    def actor_loss(self, batch: Transitions) -> Tensor:
        """E[-lambda * Q1(s, pi(s)) + bc * |pi(s) - a|^2 / A], lambda = alpha / mean |Q1| (equations 4 and 5)."""
        actions = self.actor(batch.observations)
        q = self.critic(batch.observations, actions)[0]
        if self.config.bc == 0:
            return -(batch.weights * q).mean()
        cloning = batch.regularization * (actions - batch.actions).square().mean(-1)
        scale = self.config.alpha / mean(q.abs())
        return (batch.weights * (self.config.bc * cloning - scale * q)).mean()

    def update(self, batch: Transitions) -> Metrics:
        """Critics; every `actor_interval` updates also actor and targets."""
        self.num_updates += 1
        metrics = {"critic_loss": self.critic_optimizer.step(self.critic_loss(batch))}
        if self.num_updates % self.config.actor_interval == 0:
            metrics["actor_loss"] = self.actor_optimizer.step(self.actor_loss(batch))
            polyak_update(self.target_critic, self.critic, self.config.tau)
            polyak_update(self.target_actor, self.actor, self.config.tau)
        return metrics

    def policy(self, observations: Tensor) -> Deterministic:
        """The actor's actions, with the spread of exploration."""
        return Deterministic(self.actor(observations), self.exploration)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """As every learner; fine-tuning with the settings' shares, and in blocks where they ask for it."""
        c = self.config
        shares = Shares(offline=1 - c.online_share, online=c.online_share, whole_batches=c.whole_batches)
        cadence = budget.blocks(c.block_steps)
        phases = super().phases(budget)
        return tuple(replace(p, shares=shares, cadence=cadence) if p.name == "finetune" else p for p in phases)
