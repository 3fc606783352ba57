"""OPT: online pre-training of a critic (Shin et al., 2025), https://arxiv.org/abs/2507.08387, on TD3+BC and SPOT.

Between offline training and fine-tuning, a new critic is meta-trained on a few thousand rows of the frozen policy, so
that one gradient step on offline rows makes it good on online ones. Fine-tuning moves from the old to the new critic.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor
from torch.func import functional_call

from o2o_diffusion.distributed import gather
from o2o_diffusion.learners.schedules import Scheduled, linear
from o2o_diffusion.learners.spot import SPOT
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase, Shares
from o2o_diffusion.types import Metrics, Source, Transitions

META = "online_pretrain"


class OPT(Scheduled, TD3BC):
    """TD3+BC offline; then a new critic is trained on the rows of the warm-up; then TD3 on a blend of both critics.

    The policy doesn't move in the middle phase. Both critics have their own targets. Rows of the middle phase are drawn
    by the run's sampler, a batch for each pool on average. Constants are those of a port of the authors' code.
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Defaults are the authors' for medium locomotion datasets; random: kappa 1 throughout."""

        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        online_pretrain_updates: Annotated[int, "updates of the new critic before fine-tuning", Ge(1)] = 50_000
        inner_rate: Annotated[float, "size of the gradient step on offline rows", Ge(0)] = 3e-4
        first_order: Annotated[bool, "treat the inner gradient as a constant"] = False
        first_kappa: Annotated[float, "first weight of the new critic", Interval(ge=0, le=1)] = 0.3
        last_kappa: Annotated[float, "final weight of the new critic", Interval(ge=0, le=1)] = 0.9
        kappa_steps: Annotated[float, "online steps in which that weight changes", Gt(0)] = 125_000

    config: Config
    state_fields = (*TD3BC.state_fields, *Scheduled.state_fields)

    def build(self) -> None:
        """Create the base's networks and the new critic with its target."""
        super().build()
        self.online_critic = self.build_critic().to(self.device)
        self.online_critic.mlp.is_plain = False  # layers as single nodes of the graph have second derivatives
        self.target_online_critic = deepcopy(self.online_critic).requires_grad_(False)
        self.online_critic_optimizer = Optimizer(self.online_critic.parameters(), self.config.learning_rate)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The default phases with that of the new critic before the last one."""
        *others, last = super().phases(budget)
        if not last.is_online:
            return (*others, last)
        c, halves = self.config, Shares(offline=0.5, online=0.5)
        meta = Phase(META, c.online_pretrain_updates, shares=halves, batch_size=2 * c.batch_size)
        return (*others, meta, last)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; after the middle one, actor and old critic start with fresh moments."""
        if self.phase.name == META:
            self.actor_optimizer.reset()
            self.critic_optimizer.reset()
        super().begin_phase(phase, replay)

    @property
    def kappa(self) -> float:
        """The current weight of the new critic, 0 before it is trained."""
        c, is_ready = self.config, self.phase.is_online and self.phase.learns
        return linear(c.first_kappa, c.last_kappa, self.online_steps / c.kappa_steps) if is_ready else 0.0

    def policy_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the value that the actor maximizes: the blend of each critic's Q1."""
        old, new = (critic(observations, actions)[..., 0, :] for critic in (self.critic, self.online_critic))
        return (1 - self.kappa) * old + self.kappa * new

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the blend of each critic's minimum."""
        old, new = (critic(observations, actions).amin(-2) for critic in (self.critic, self.online_critic))
        return (1 - self.kappa) * old + self.kappa * new

    def q_scale(self, q: Tensor) -> Tensor:
        """TD3+BC's lambda offline, 1 online."""
        return torch.ones_like(q[..., 0]) if self.phase.is_online else super().q_scale(q)

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], TD3+BC's cloning offline, nothing online."""
        return torch.zeros_like(batch.weights) if self.phase.is_online else super().regularizer(batch, actions)

    @torch.no_grad()
    def online_target_q(self, batch: Transitions) -> Tensor:
        """[B], TD3's target by the new critic's own target."""
        actions = self.target_actions(batch.next_observations)
        return batch.rewards + batch.discounts * self.target_online_critic(batch.next_observations, actions).amin(-2)

    def squared_errors(self, parameters: Mapping[str, Tensor], batch: Transitions, target_q: Tensor) -> Tensor:
        """[B], weighted squared errors of the new critic with `parameters`, summed over the ensemble."""
        q = functional_call(self.online_critic, dict(parameters), (batch.observations, batch.actions))
        return batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)

    def meta_loss(self, batch: Transitions, target_q: Tensor) -> Tensor:
        """L_off(psi) + w L_on(psi - inner_rate * grad L_off(psi)), w = min(1, L_off / L_on) without gradient."""
        is_online = (batch.sources % 2 == int(Source.ONLINE)).float()
        parameters = dict(self.online_critic.named_parameters())
        offline_loss = masked_mean(self.squared_errors(parameters, batch, target_q), 1 - is_online)
        second_order, weights = not self.config.first_order, list(parameters.values())
        gradients = torch.autograd.grad(offline_loss.sum(), weights, create_graph=second_order, retain_graph=True)
        steps = zip(parameters.items(), gradients, strict=True)
        stepped = {name: weight - self.config.inner_rate * gradient for (name, weight), gradient in steps}
        online_loss = masked_mean(self.squared_errors(stepped, batch, target_q), is_online)
        weight = (offline_loss / online_loss.clamp(min=1e-12)).clamp(max=1.0).detach()
        return offline_loss + weight * online_loss

    def update_meta(self, batch: Transitions) -> Metrics:
        """Take one step of the new critic; the loss is nonlinear in the batch, so processes share their rows."""
        self.num_updates += 1
        target_q = gather(self.online_target_q(batch))
        loss = self.online_critic_optimizer.step(self.meta_loss(batch.map(gather), target_q))
        if self.num_updates % self.config.actor_interval == 0:
            polyak_update(self.target_online_critic, self.online_critic, self.config.tau)
        return {"online_critic_loss": loss}

    def update(self, batch: Transitions) -> Metrics:
        """Train the new critic in the middle phase; online, both critics, then the base's update."""
        if self.phase.name == META:
            return self.update_meta(batch)
        if not self.phase.is_online:
            return super().update(batch)
        errors = self.squared_errors(dict(self.online_critic.named_parameters()), batch, self.online_target_q(batch))
        return {"online_critic_loss": self.online_critic_optimizer.step(errors.mean(-1))} | super().update(batch)

    def update_actor(self, batch: Transitions) -> Metrics:
        """Take the base's actor step and, online, update the new critic's target as well."""
        metrics = super().update_actor(batch)
        if self.phase.is_online:
            polyak_update(self.target_online_critic, self.online_critic, self.config.tau)
        return metrics


class OPTOnSPOT(OPT, SPOT):
    """OPT whose base is SPOT, offline and online; the authors' actor has a learning rate of 1e-4 there."""

    @dataclass(frozen=True)
    class Config(SPOT.Config, OPT.Config):
        """Defaults are the authors' for AntMaze, where the run's discount is 0.995."""

        first_kappa: Annotated[float, "first weight of the new critic", Interval(ge=0, le=1)] = 0.1
        kappa_steps: Annotated[float, "online steps in which that weight changes", Gt(0)] = 75_000

    config: Config

    def q_scale(self, q: Tensor) -> Tensor:
        """SPOT's lambda."""
        return SPOT.q_scale(self, q)

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], SPOT's."""
        return SPOT.regularizer(self, batch, actions)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B] over the rows where `mask` [B] is 1; 0 without any."""
    return (mask * values).sum(-1) / mask.sum(-1).clamp(min=1.0)
