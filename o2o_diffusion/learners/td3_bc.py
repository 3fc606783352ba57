"""TD3+BC (Fujimoto and Gu, 2021), https://arxiv.org/abs/2106.06860: TD3 with a behavior cloning term.

With `bc: 0` it is TD3, https://arxiv.org/abs/1802.09477. With single-pool batches and no cloning on recent rows it is
GCTD3BC of APL, https://arxiv.org/abs/2303.07693 (`configs/learner/gctd3bc.yaml`).
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.networks.actors import Deterministic, DeterministicActor
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.schedule import Budget, Cadence, Shares
from o2o_diffusion.types import Metrics, Transitions


class TD3BC(BaseLearner):
    """A deterministic policy that maximizes Q and stays close to batch actions; the same offline and online.

    Q is scaled by lambda = alpha / mean |Q|, so that `alpha` weights it against cloning at any reward scale; without
    cloning lambda is 1, as in TD3, because Adam is scale-invariant. `batch.regularization` multiplies the cloning term,
    not lambda. Observations are standardized for TD3 too, as in TD3+BC.
    """

    @dataclass(frozen=True)
    class Config(BaseLearner.Config):
        """Defaults are the paper's; the settings for APL have no effect by default."""

        alpha: Annotated[float, "weight of Q, normalized by mean |Q|, relative to cloning", Ge(0)] = 2.5
        bc: Annotated[float, "weight of behavior cloning; 0 is TD3", Ge(0)] = 1.0
        actor_interval: Annotated[int, "critic steps per actor and target step", Ge(1)] = 2
        target_noise: Annotated[float, "standard deviation of the target smoothing noise", Ge(0)] = 0.2
        noise_clip: Annotated[float, "clipping bound of the target smoothing noise", Ge(0)] = 0.5
        exploration_noise: Annotated[float, "standard deviation of the exploration noise", Ge(0)] = 0.1
        online_share: Annotated[float, "share of online rows in a fine-tuning batch", Interval(ge=0, le=1)] = 0.5
        whole_batches: Annotated[bool, "draw each batch from one pool, with the shares as probabilities"] = False
        block_steps: Annotated[int, "environment steps between blocks of updates", Ge(1)] = 1

    config: Config
    state_fields = (*BaseLearner.state_fields, "num_updates")

    def build(self) -> None:
        """Create an actor and two critics, each with a target."""
        c = self.config
        self.actor = self.build_actor().to(self.device)
        self.critic = self.build_critic().to(self.device)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = Optimizer(self.actor.parameters(), c.learning_rate)
        self.critic_optimizer = Optimizer(self.critic.parameters(), c.learning_rate)
        self.exploration = torch.tensor(c.exploration_noise, device=self.device).log()
        self.num_updates = 0

    def build_actor(self) -> DeterministicActor:
        """The policy network."""
        return DeterministicActor(self.spec.observation_dim, self.spec.action_dim, self.config.hidden)

    @property
    def bc(self) -> Tensor | float:
        """The current weight of cloning."""
        return self.config.bc

    @torch.no_grad()
    def target_actions(self, observations: Tensor) -> Tensor:
        """[B, A], target policy actions with clipped noise, so that similar actions have similar values."""
        noise = self.config.target_noise * self.rng.normal(*observations.shape[:-1], self.spec.action_dim)
        actions = self.target_actor(observations)
        return (actions + noise.clamp(-self.config.noise_clip, self.config.noise_clip)).clamp(-1, 1)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[B], r + discount * min Q'(s', a'), a' the smoothed target action."""
        next_v = self.target_values(batch.next_observations, self.target_actions(batch.next_observations))
        return batch.rewards + batch.discounts * next_v

    def critic_loss(self, batch: Transitions) -> Tensor:
        """E[(target - Q(s, a))^2], summed over the ensemble."""
        target_q = self.target_q(batch)
        q = self.critic(batch.observations, batch.actions)  # [..., E, B]
        return (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)

    def policy_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the value that the actor maximizes: Q1."""
        return self.critic(observations, actions)[..., 0, :]

    def q_scale(self, q: Tensor) -> Tensor:
        """lambda = alpha / mean |Q|, or 1 without cloning."""
        return self.config.alpha / mean(q.abs()) if self.config.bc else torch.ones_like(q[..., 0])

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], bc * |pi(s) - a|^2 / A on the rows to clone, `actions` = pi(s)."""
        cloned = self.cloning_weights(batch) * batch.regularization
        return self.bc * cloned * (actions - batch.actions).square().mean(-1)

    def actor_loss(self, batch: Transitions) -> Tensor:
        """E[-lambda * Q1(s, pi(s)) + regularizer] (equations 4 and 5)."""
        actions = self.actor(batch.observations)
        q = self.policy_q(batch.observations, actions)
        improvement = self.actor_weights(batch) * self.q_scale(q)[..., None] * q
        return (self.regularizer(batch, actions) - improvement).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        """Update the critics and, every `actor_interval` updates, the actor and the targets."""
        self.num_updates += 1
        metrics = {"critic_loss": self.critic_optimizer.step(self.critic_loss(batch))}
        return metrics | (self.update_actor(batch) if self.num_updates % self.config.actor_interval == 0 else {})

    def update_actor(self, batch: Transitions) -> Metrics:
        """Take one actor step, then update the targets of critics and actor."""
        actor_loss = self.actor_optimizer.step(self.actor_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        polyak_update(self.target_actor, self.actor, self.config.tau)
        return {"actor_loss": actor_loss}

    def policy(self, observations: Tensor) -> Deterministic:
        """The actor's actions, with the standard deviation of the exploration noise."""
        return Deterministic(self.actor(observations), self.exploration)

    def cadence(self, budget: Budget) -> Cadence:
        """Run updates in blocks, every `block_steps` environment steps."""
        return budget.cadence(self.config.block_steps)

    def online_shares(self) -> Shares:
        """The shares in the settings, `online_share` and the rest offline."""
        c = self.config
        return Shares(offline=1 - c.online_share, online=c.online_share, whole_batches=c.whole_batches)
