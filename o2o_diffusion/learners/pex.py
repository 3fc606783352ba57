"""Policy expansion (Zhang et al., 2023), https://arxiv.org/abs/2302.00935, on IQL.

At the switch the offline policy is frozen and a second one begins to learn. In every state both propose an action, the
frozen one its most probable, and the critics choose: softmax(kappa * min Q) over the two.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from o2o_diffusion.distributed import mean
from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.optimization import polyak_update
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.types import Metrics, Transitions


class Spread(nn.Module):
    """The standard deviation of the last numbers measured, over all processes; 1 at first."""

    std: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("std", torch.ones(()))

    @torch.no_grad()
    def measure(self, values: Tensor) -> None:
        """Take the spread of `values` [B]; the floor keeps equal numbers finite."""
        self.std.copy_(mean((values - mean(values)).square()).sqrt().clamp(min=1e-6))


class PEX(IQL):
    """IQL offline; online the composite of a frozen and a learning policy acts, and IQL's losses go on.

    The authors begin to update after 5,000 environment steps: the run's `warmup_steps`. Actions are clipped before
    they are valued or regressed on, and evaluation takes the better proposal; in the authors' code actions are not
    clipped, evaluation draws in a tenth of the cases (`evaluation_epsilon`), and the offline policy's learning rate
    falls to 0, which is constant here.
    """

    @dataclass(frozen=True)
    class Config(IQL.Config):
        """Defaults are the authors', except `evaluation_epsilon` (0.1 in their code) and what IQL has of its own."""

        kappa: Annotated[float, "sharpness of the choice between the proposals; its scale is that of 1 / Q"] = 10.0
        relative_kappa: Annotated[bool, "divide kappa by the standard deviation of Q over the batch"] = False
        policy_target: Annotated[
            Literal["composite", "replay"], "actions that the online policy regresses on: the composite's, or the rows'"
        ] = "composite"
        init_online: Annotated[Literal["fresh", "copy"], "weights of the online policy: new, or the offline one's"] = (
            "fresh"
        )
        evaluation_epsilon: Annotated[float, "probability with which evaluation draws as exploration does"] = 0.0

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    counters = (*IQL.counters, "is_online", "offline_updates")

    def build(self) -> None:
        """IQL's networks, and room for the frozen policy."""
        super().build()
        self.offline_actor = deepcopy(self.actor).requires_grad_(False)
        self.spread = Spread().to(self.device)
        self.is_online, self.offline_updates = False, 0

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """As IQL; the first phase with environment steps begins with the expansion."""
        super().begin_phase(phase, replay)
        if phase.env_steps and not self.is_online:
            self.expand()
        self.is_online = phase.env_steps > 0

    def expand(self) -> None:
        """Freeze the policy that has acted so far and begin another; critics and values stay, Adam's moments do not."""
        self.offline_actor.load_state_dict(self.acting_actor.state_dict())
        begin = self.fresh_actor() if self.config.init_online == "fresh" else self.offline_actor
        for network in (self.actor, self.acting_actor):
            network.load_state_dict(begin.state_dict())
        for optimizer in (self.actor_optimizer, self.value_optimizer, self.critic_optimizer):
            optimizer.adam.state.clear()
        self.offline_updates, self.num_updates = self.num_updates, 0

    def fresh_actor(self) -> nn.Module:
        """A policy with new weights, the same on every process, on the scale of observations that the others know."""
        noise = self.noise.generator
        seed = int(torch.randint(2**31, (), generator=noise, device=noise.device))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            actor = self.build_actor()
        actor.normalizer.load_state_dict(self.actor.normalizer.state_dict())
        return actor

    def begin_episode(self) -> None:
        """InputError where there is no offline policy to expand."""
        if self.is_online and not self.offline_updates:
            raise InputError("PEX expands an offline policy and has none: set pretrain_updates or pretrained")

    def preference(self, observations: Tensor, offline: Tensor, online: Tensor) -> Tensor:
        """[B], kappa * (min Q(s, online) - min Q(s, offline)): the logit of the online proposal's probability."""
        advantage = self.values(observations, online) - self.values(observations, offline)
        return self.config.kappa / self.spread.std * advantage

    @torch.no_grad()
    def composite(self, observations: Tensor, online: Tensor, draws: Tensor | float) -> Tensor:
        """[B, A]: the proposal `online` [B, A] where `draws`, uniform [B], fall below its probability, else the frozen.

        Draws of 1/2 take the better of the two.
        """
        offline, online = self.offline_actor(observations).mode, online.clamp(-1, 1)
        probability = self.preference(observations, offline, online).sigmoid()
        return torch.where((draws < probability)[:, None], online, offline)

    def actor_loss(self, batch: Transitions, q: Tensor) -> Tensor:
        """IQL's; online, with policy target "composite", on actions and advantages of the composite's draws."""
        if self.is_online and self.config.policy_target == "composite":
            with torch.no_grad():
                online = self.actor(batch.observations).sample(self.noise)
            actions = self.composite(batch.observations, online, self.noise.uniform(len(batch)))
            batch = batch.where(actions=actions)
            q = self.target_q(batch)
        return super().actor_loss(batch, q)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[B], min Q'(s, a)."""
        return self.target_critic(batch.observations, batch.actions).amin(0)

    def update(self, batch: Transitions) -> Metrics:
        """Offline as IQL; online value, critics with the new value, targets, then the policy, as the authors."""
        if self.config.relative_kappa:
            self.spread.measure(self.values(batch.observations, batch.actions))
        if not self.is_online:
            return super().update(batch)
        q = self.target_q(batch)
        value_loss = self.value_optimizer.step(self.value_loss(batch, q))
        critic_loss = self.critic_optimizer.step(self.critic_loss(batch))
        polyak_update(self.target_critic, self.critic, self.config.tau)
        metrics = self.update_actor(batch, self.target_q(batch))
        return {"value_loss": value_loss, "critic_loss": critic_loss, "q": q.mean()} | metrics

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """[B, observation_dim] -> [B, action_dim] in [-1, 1]: the better proposal, or a draw of both to explore."""
        if not self.is_online:
            return super().act(observations, deterministic=deterministic)
        policy, epsilon = self.policy(observations), self.config.evaluation_epsilon if deterministic else 1.0
        if epsilon == 0:
            return self.composite(observations, policy.mode, 0.5)
        draws = self.acting_noise.uniform(len(observations), 3)  # is the online action drawn, is the choice, which
        online = torch.where(draws[:, :1] < epsilon, policy.sample(self.acting_noise), policy.mode)
        return self.composite(observations, online, torch.where(draws[:, 1] < epsilon, draws[:, 2], 0.5))

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B]; online that of the composite's continuous part: log pi(a|s) + log of the probability that a is taken.

        The rest of the probability lies on one point, the frozen policy's action, where there is no density.
        """
        log_prob = super().log_prob(observations, actions)
        if not self.is_online:
            return log_prob
        with torch.no_grad():
            offline = self.offline_actor(observations).mode
        return log_prob + F.logsigmoid(self.preference(observations, offline, actions))
