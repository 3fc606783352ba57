"""Policy expansion (Zhang et al., 2023), https://arxiv.org/abs/2302.00935, on IQL.

At the switch to online training, the offline policy is frozen and a second policy starts to learn. In each state both
propose an action (the frozen policy its mode), and one is sampled from softmax(kappa * min Q) over the two.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng, mean, seeded
from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.base import required
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.optimization import polyak_update
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.types import Metrics, Transitions


class BatchStd(nn.Module):
    """Standard deviation of the last measured batch, over all processes; initially 1."""

    std: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("std", torch.ones(()))

    @torch.no_grad()
    def measure(self, values: Tensor) -> None:
        """Store the standard deviation of `values` [B], floored to keep divisions by it finite."""
        self.std.copy_(mean((values - mean(values)[..., None]).square()).sqrt().clamp(min=1e-6))


class PEX(IQL):
    """IQL offline; online, a composite of a frozen and a learning policy acts, and IQL's losses continue.

    The authors start updating after 5,000 environment steps (the run's `warmup_steps`). Here actions are clipped before
    they enter the critics or the regression, evaluation takes the better proposal, and the offline policy's learning
    rate is constant; in the authors' code actions are not clipped, evaluation samples in 10% of the cases
    (`evaluation_epsilon`), and that learning rate decays to 0.
    """

    @dataclass(frozen=True)
    class Config(IQL.Config):
        """Defaults are the authors', except `evaluation_epsilon` (0.1 in their code) and IQL's own settings."""

        kappa: Annotated[float, "inverse temperature of the choice between the proposals, in units of 1 / Q", Ge(0)] = (
            10.0
        )
        relative_kappa: Annotated[bool, "divide kappa by the standard deviation of Q over the batch"] = False
        policy_target: Annotated[
            Literal["composite", "replay"], "regression actions of the online policy: composite or replay"
        ] = "composite"
        init_online: Annotated[
            Literal["fresh", "copy"], "initial online policy: new weights or a copy of the offline policy"
        ] = "fresh"
        evaluation_epsilon: Annotated[
            float, "probability of sampling in evaluation, as in exploration", Interval(ge=0, le=1)
        ] = 0.0

    config: Config
    state_fields = (*IQL.state_fields, "offline_updates")

    def build(self) -> None:
        """Create IQL's networks and a placeholder for the frozen policy."""
        super().build()
        self.offline_actor = deepcopy(self.actor).requires_grad_(False)
        self.q_std = BatchStd().to(self.device)
        self.offline_updates = 0

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; expand the policy at the first online phase."""
        expands = phase.is_online and not self.phase.is_online
        super().begin_phase(phase, replay)
        if expands:
            self.expand()

    def expand(self) -> None:
        """Freeze the acting policy and start a new one; keep critics and value, reset Adam's moments."""
        self.offline_actor.load_state_dict(self.acting_actor.state_dict())
        begin = self.fresh_actor() if self.config.init_online == "fresh" else self.offline_actor
        for network in (self.actor, self.acting_actor):
            network.load_state_dict(begin.state_dict())
        for optimizer in (self.actor_optimizer, self.value_optimizer, self.critic_optimizer):
            optimizer.reset()
        self.offline_updates, self.num_updates = self.num_updates, 0

    def fresh_actor(self) -> nn.Module:
        """A policy with new weights, the same on every process, and the current observation statistics."""
        generator = self.rng.generator
        with seeded(int(torch.randint(2**31, (), generator=generator, device=generator.device))):
            actor = self.build_actor()
        actor.normalizer.load_state_dict(self.actor.normalizer.state_dict())
        return actor

    def begin_episode(self) -> None:
        """Raise InputError if there is no offline policy to expand."""
        if self.phase.is_online and not self.offline_updates:
            raise InputError("PEX expands an offline policy and has none: set pretrain_updates or pretrained")

    def preference(self, observations: Tensor, offline: Tensor, online: Tensor) -> Tensor:
        """[B], kappa * (min Q(s, online) - min Q(s, offline)): the logit of choosing the online proposal."""
        advantage = self.values(observations, online) - self.values(observations, offline)
        return self.config.kappa / self.q_std.std[..., None] * advantage

    @torch.no_grad()
    def composite(self, observations: Tensor, online: Tensor, draws: Tensor | float) -> Tensor:
        """[B, A], `online` [B, A] if the uniform `draws` [B] are below its probability, else the frozen policy's mode.

        Draws of 1/2 select the better of the two.
        """
        offline, online = self.offline_actor(observations).mode, online.clamp(-1, 1)
        probability = self.preference(observations, offline, online).sigmoid()
        return torch.where((draws < probability)[..., None], online, offline)

    @property
    def on_composite(self) -> bool:
        """Whether the online policy regresses on composite actions instead of the batch's."""
        return self.phase.is_online and self.config.policy_target == "composite"

    def cloning_weights(self, batch: Transitions) -> Tensor:
        """[B], IQL's; those of the actor on composite actions, because none of these is generated."""
        return self.actor_weights(batch) if self.on_composite else super().cloning_weights(batch)

    def actor_loss(self, batch: Transitions, q: Tensor) -> Tensor:
        """IQL's loss; online with policy target "composite", on sampled composite actions and their advantages."""
        if self.on_composite:
            with torch.no_grad():
                online = self.actor(batch.observations).sample(self.rng)
            actions = self.composite(batch.observations, online, self.rng.uniform(*batch.rewards.shape))
            batch = batch.where(actions=actions)
            q = self.target_q(batch)
        return super().actor_loss(batch, q)

    def update(self, batch: Transitions) -> Metrics:
        """Run IQL's update offline; online, value, critics, targets, then policy: the order of the authors' code."""
        if self.config.relative_kappa:
            self.q_std.measure(self.values(batch.observations, batch.actions))
        if not self.phase.is_online:
            return super().update(batch)
        q = self.target_q(batch)
        value_loss = self.value_optimizer.step(self.value_loss(batch, q))
        critic_loss = self.critic_optimizer.step(self.critic_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        metrics = self.update_actor(batch, self.target_q(batch))
        return {"value_loss": value_loss, "critic_loss": critic_loss, "q": q.mean(-1)} | metrics

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """[B, observation_dim] -> [B, action_dim] in [-1, 1]: the better proposal, or a sample when exploring.

        With `evaluation_epsilon`, some deterministic actions are also sampled if `rng` is given.
        """
        if not self.phase.is_online:
            return super().act(observations, deterministic=deterministic, rng=rng)
        policy, epsilon = self.policy(observations), self.config.evaluation_epsilon if deterministic else 1.0
        if epsilon == 0 or (deterministic and rng is None):
            return self.composite(observations, policy.mode, 0.5)
        rng = required(rng)
        draws = rng.uniform(len(observations), 3)  # sample the action?, sample the choice?, the choice
        online = torch.where(draws[:, :1] < epsilon, policy.sample(rng), policy.mode)
        return self.composite(observations, online, torch.where(draws[:, 1] < epsilon, draws[:, 2], 0.5))

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B]; online, of the composite's continuous part: log pi(a|s) + log of the probability of choosing a.

        The remaining probability is a point mass at the frozen policy's action, which has no density.
        """
        log_prob = super().log_prob(observations, actions)
        if not self.phase.is_online:
            return log_prob
        with torch.no_grad():
            offline = self.offline_actor(observations).mode
        return log_prob + F.logsigmoid(self.preference(observations, offline, actions))
