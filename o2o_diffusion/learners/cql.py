"""Conservative Q-learning (Kumar et al., 2020), https://arxiv.org/abs/2006.04779, and its calibrated form Cal-QL.

Cal-QL (Nakamoto et al., 2023), https://arxiv.org/abs/2303.05479, is `calibrated: true` (`configs/learner/cal_ql.yaml`).
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor, Temperature
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Cadence, Phase, per_episode, per_step
from o2o_diffusion.types import Metrics, Transitions

MAX_MULTIPLIER = 1e6


class CQL(SAC):
    """SAC whose critics are pushed down on proposed actions and up on the data's, by rows' `regularization`.

    The penalty D(s, a) is a soft maximum of Q over uniform actions and actions of the policy in s and s', less Q(s, a).
    Calibrated, the policy's actions are pushed down no further than the data's discounted returns, offline and online;
    an unknown return bounds nothing. Every statistic enters the losses linearly, so that averaged gradients suffice on
    several processes. The actor steps after the critics, where the authors' code takes all losses before all steps.
    """

    @dataclass(frozen=True)
    class Config(SAC.Config):
        """Defaults are Cal-QL's common ones; AntMaze has critics of four layers and a `gap` of 0.8."""

        actor_learning_rate: Annotated[float | None, "rate for actor and temperature; null: learning_rate"] = 1e-4
        backup_actions: Annotated[int, "next actions of which the best counts in the critics' target"] = 10
        entropy_backup: Annotated[bool, "count the next action's entropy in the critics' target"] = False
        conservatism: Annotated[float, "weight of the penalty (alpha)"] = 5.0
        online_conservatism: Annotated[float | None, "the same online; null: as offline"] = None
        gap: Annotated[float | None, "Lagrange: mean penalty at which the weight stays; null: fixed weight"] = None
        calibrated: Annotated[bool, "Cal-QL: the penalty stops at the data's returns"] = False
        penalty_actions: Annotated[int, "uniform actions, and actions in s and in s', in the penalty"] = 10
        penalty_critics: Annotated[int | None, "critics with a penalty, drawn anew at each update; null: all"] = None
        penalty_temperature: Annotated[float, "of the soft maximum"] = 1.0
        importance_sampling: Annotated[bool, "divide by the actions' densities in the soft maximum"] = True
        min_difference: Annotated[float, "penalties are clipped from below; CORL has -200"] = -math.inf
        max_difference: Annotated[float, "penalties are clipped from above"] = math.inf
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m, b, from 1 and -1"] = True
        output_gain: Annotated[float, "gain of the output layers' initial weights"] = 0.01

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    counters = (*SAC.counters, "is_online")

    def build(self) -> None:
        """SAC's networks, and the multiplier of the penalty, which is trained where there is a `gap`."""
        super().build()
        self.multiplier = self.build_multiplier().to(self.device)
        self.multiplier_optimizer = Optimizer(self.multiplier.parameters(), self.config.learning_rate)
        self.is_online = False

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are its own."""
        c = self.config
        return super().build_actor(affine_log_std=c.affine_log_std, output_gain=c.output_gain, **options)

    def build_critic(self, **options: Any) -> Critic:
        """The ensemble of critics; `options` are its own."""
        return super().build_critic(output_gain=self.config.output_gain, **options)

    def build_multiplier(self) -> nn.Module:
        """The multiplier of the penalty: learned through its logarithm, which is 1 at first."""
        return Temperature(log=1.0)

    @property
    def conservatism(self) -> float:
        """The penalty's weight in this phase, before the multiplier."""
        c = self.config
        return c.online_conservatism if self.is_online and c.online_conservatism is not None else c.conservatism

    def penalty_weight(self) -> Tensor | float:
        """The penalty's weight now: fixed, or times the multiplier."""
        if self.config.gap is None:
            return self.conservatism
        return self.conservatism * self.multiplier().clamp(max=MAX_MULTIPLIER)

    def training_policy(self, batch: Transitions) -> TanhGaussian:
        """The policy in `batch.observations`, as the penalty meets it."""
        return self.policy(batch.observations)

    @torch.no_grad()
    def proposals(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Actions [B, 3N, A], uniform, of the policy in s and of the policy in s'; their log-densities [B, 3N]."""
        count, action_dim = self.config.penalty_actions, self.spec.action_dim
        uniform = 2 * self.noise.uniform(len(batch), count, action_dim) - 1
        draws = [(uniform, uniform.new_full((len(batch), count), -action_dim * math.log(2)))]
        for policy in (self.training_policy(batch), self.policy(batch.next_observations)):
            draws.append(policy.repeat(count).sample_with_log_prob(self.noise))
        actions, log_densities = zip(*draws, strict=True)
        return torch.cat(actions, dim=1), torch.cat(log_densities, dim=1)

    def calibrate(self, q: Tensor, returns: Tensor) -> Tensor:
        """q [K, B, 3N] with those of the policy's actions raised to `returns` [B]; the uniform ones come first."""
        uniform, policy = q.tensor_split([self.config.penalty_actions], dim=-1)
        return torch.cat([uniform, torch.maximum(policy, returns[:, None])], dim=-1)

    def soft_maximum(self, q: Tensor, log_density: Tensor, data_q: Tensor) -> Tensor:
        """q [K, B, 3N] -> [K, B]: T log sum exp((q - log density) / T), or T log mean exp(q / T) with the data's q."""
        temperature = self.config.penalty_temperature
        if self.config.importance_sampling:
            return temperature * ((q - log_density) / temperature).logsumexp(-1)
        q = torch.cat([q, data_q[..., None]], dim=-1)
        return temperature * ((q / temperature).logsumexp(-1) - math.log(q.shape[-1]))

    def differences(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Q(s, a) [E, B], and D(s, a) [K, B]; proposed actions of all kinds go through the critics in one call."""
        c = self.config
        actions, log_density = self.proposals(batch)
        members = self.draw_members(c.penalty_critics)
        q = self.critic(batch.observations, batch.actions)
        proposed_q = self.critic(batch.observations, actions, members)
        if c.calibrated:
            proposed_q = self.calibrate(proposed_q, batch.returns)
        data_q = q if members is None else q[members]
        difference = self.soft_maximum(proposed_q, log_density, data_q) - data_q
        return q, difference.clamp(c.min_difference, c.max_difference)

    def conservative_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """SAC's loss of the critics plus weight * E[D - gap], summed over the ensemble; and the detached E[D - gap]."""
        target_q = self.target_q(batch)
        q, difference = self.differences(batch)
        penalty = (batch.weights * batch.regularization * (difference - (self.config.gap or 0.0))).mean()
        td_loss = (batch.weights * (q - target_q).square()).sum(0).mean()
        return td_loss + len(q) * self.penalty_weight() * penalty, penalty.detach()

    def multiplier_loss(self, penalty: Tensor) -> Tensor:
        """-multiplier * conservatism * E[D - gap]: the weight grows while the penalty exceeds the gap."""
        return -self.penalty_weight() * penalty

    def update_critic(self, batch: Transitions) -> Metrics:
        """One step of the critics, which their targets follow, and of the multiplier; without a weight SAC's."""
        if not self.conservatism:
            return super().update_critic(batch)
        loss, penalty = self.conservative_loss(batch)
        metrics = {"critic_loss": self.critic_optimizer.step(loss), "penalty": penalty}
        polyak_update(self.target_critic, self.critic, self.config.tau)
        if self.config.gap is not None:
            metrics["multiplier_loss"] = self.multiplier_optimizer.step(self.multiplier_loss(penalty))
            metrics["multiplier"] = self.multiplier().detach()
        return metrics

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """As SAC; raises InputError when the data that should calibrate the critics have no returns."""
        super().begin_phase(phase, replay)
        self.is_online = phase.env_steps > 0
        rows = len(replay.offline) if self.config.calibrated else 0
        if rows and not replay.offline.fields["returns"][:rows].isfinite().any():
            raise InputError(
                f"learner.calibrated: none of the {rows} offline rows has a return; expected whole episodes,"
                " or learner.calibrated=false (plain CQL)"
            )

    def cadence(self, budget: Budget) -> Cadence:
        """When online updates are owed: calibrated, after every episode, when its returns are known."""
        return (per_episode if self.config.calibrated else per_step)(budget.updates_per_step)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """As SAC, with a cadence of its own."""
        online = {"cadence": self.cadence(budget)}
        return tuple(replace(p, **online) if p.learns and p.env_steps else p for p in super().phases(budget))
