"""Conservative Q-learning (Kumar et al., 2020), https://arxiv.org/abs/2006.04779."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor, Temperature
from o2o_diffusion.networks.critics import Critic, select
from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.types import Metrics, Transitions

MAX_MULTIPLIER = 1e6


class CQL(SAC):
    """SAC with a penalty that lowers Q on proposed actions and raises it on data actions.

    `batch.regularization` multiplies the penalty of a row. The penalty D(s, a) is a soft maximum of Q over uniform
    actions and policy actions at s and s', minus Q(s, a). All batch statistics enter the losses linearly, so averaging
    gradients over processes is exact. The actor step follows the critic step; the authors' code computes all losses
    before any step.
    """

    @dataclass(frozen=True)
    class Config(SAC.Config):
        """Defaults are Cal-QL's task-independent ones; AntMaze uses four-layer critics and a `gap` of 0.8."""

        actor_learning_rate: Annotated[
            float | None, "learning rate of actor and temperature; null: learning_rate", Gt(0)
        ] = 1e-4
        backup_actions: Annotated[int, "number of next actions in the max-Q backup", Ge(1)] = 10
        entropy_backup: Annotated[bool, "include the next action's entropy in the critics' target"] = False
        conservatism: Annotated[float, "penalty weight (alpha)", Ge(0)] = 5.0
        online_conservatism: Annotated[float | None, "penalty weight online; null: same as offline", Ge(0)] = None
        gap: Annotated[float | None, "target mean penalty of the Lagrange multiplier; null: fixed weight"] = None
        penalty_actions: Annotated[int, "penalty actions per source: uniform, policy at s, policy at s'", Ge(1)] = 10
        penalty_critics: Annotated[int | None, "penalized critics, resampled at each update; null: all", Ge(1)] = None
        penalty_temperature: Annotated[float, "temperature of the soft maximum", Gt(0)] = 1.0
        importance_sampling: Annotated[bool, "divide by the action densities in the soft maximum"] = True
        min_difference: Annotated[float, "lower clipping bound of the penalty; CORL uses -200"] = -math.inf
        max_difference: Annotated[float, "upper clipping bound of the penalty"] = math.inf
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m and b, initially 1 and -1"] = True
        output_gain: Annotated[float, "initialization gain of the output layers", Gt(0)] = 0.01

    config: Config

    def build(self) -> None:
        """Create SAC's networks and the penalty multiplier, which is trained if `gap` is set."""
        super().build()
        self.multiplier = self.build_multiplier().to(self.device)
        self.multiplier_optimizer = Optimizer(self.multiplier.parameters(), self.config.learning_rate)

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are passed to its constructor."""
        c = self.config
        return super().build_actor(affine_log_std=c.affine_log_std, output_gain=c.output_gain, **options)

    def build_critic(self, **options: Any) -> Critic:
        """The critic ensemble; `options` are passed to its constructor."""
        return super().build_critic(output_gain=self.config.output_gain, **options)

    def build_multiplier(self) -> nn.Module:
        """The penalty multiplier, parameterized by its logarithm, which is initially 1."""
        return Temperature(log=1.0)

    @property
    def conservatism(self) -> float:
        """The penalty weight in the current phase, before the multiplier."""
        c = self.config
        if self.phase.is_online and c.online_conservatism is not None:
            return c.online_conservatism
        return c.conservatism

    def penalty_weight(self) -> Tensor | float:
        """The current penalty weight, with the multiplier if `gap` is set."""
        if self.config.gap is None:
            return self.conservatism
        return self.conservatism * self.multiplier().clamp(max=MAX_MULTIPLIER)

    def training_policy(self, batch: Transitions) -> TanhGaussian:
        """The policy at `batch.observations`, for the penalty."""
        return self.policy(batch.observations)

    @torch.no_grad()
    def proposals(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Actions [..., B, 3N, A], uniform, policy at s, policy at s', and their log-densities [..., B, 3N]."""
        count, action_dim = self.config.penalty_actions, self.spec.action_dim
        uniform = 2 * self.rng.uniform(*batch.rewards.shape, count, action_dim) - 1
        draws = [(uniform, uniform.new_full(uniform.shape[:-1], -action_dim * math.log(2)))]
        for policy in (self.training_policy(batch), self.policy(batch.next_observations)):
            draws.append(policy.repeat(count).sample_with_log_prob(self.rng))
        actions, log_densities = zip(*draws, strict=True)
        return torch.cat(actions, dim=-2), torch.cat(log_densities, dim=-1)

    def calibrate(self, q: Tensor, returns: Tensor) -> Tensor:
        """Return `q` [..., M, B, 3N] of the proposed actions, uniform ones first, unchanged; Cal-QL overrides this."""
        return q

    def soft_maximum(self, q: Tensor, log_density: Tensor, data_q: Tensor) -> Tensor:
        """q [..., M, B, 3N] -> [..., M, B], M critics: T log sum exp((q - log density) / T).

        Without importance sampling, T log mean exp(q / T) over the proposed and the data actions.
        """
        temperature = self.config.penalty_temperature
        if self.config.importance_sampling:
            log_density = log_density.unsqueeze(-3)  # the same for every critic
            return temperature * ((q - log_density) / temperature).logsumexp(-1)
        q = torch.cat([q, data_q[..., None]], dim=-1)
        return temperature * ((q / temperature).logsumexp(-1) - math.log(q.shape[-1]))

    def differences(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Q(s, a) [..., E, B] and D(s, a) [..., M, B]; the critics evaluate all proposed actions in one call."""
        c = self.config
        actions, log_density = self.proposals(batch)
        members = self.draw_members(c.penalty_critics)
        q = self.critic(batch.observations, batch.actions)
        proposed_q = self.calibrate(self.critic(batch.observations, actions, members), batch.returns)
        data_q = q if members is None else select(q, members)
        difference = self.soft_maximum(proposed_q, log_density, data_q) - data_q
        return q, difference.clamp(c.min_difference, c.max_difference)

    def conservative_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """SAC's critic loss plus weight * E[D - gap], summed over the ensemble, and the detached E[D - gap]."""
        target_q = self.target_q(batch)
        q, difference = self.differences(batch)
        excess = difference - (self.config.gap or 0.0)
        penalty = ((batch.weights * batch.regularization).unsqueeze(-2) * excess).mean((-2, -1))
        td_loss = (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)
        return td_loss + q.shape[-2] * self.penalty_weight() * penalty, penalty.detach()

    def multiplier_loss(self, penalty: Tensor) -> Tensor:
        """-multiplier * conservatism * E[D - gap]: the weight grows while the penalty exceeds the gap."""
        return -self.penalty_weight() * penalty

    def update_critic(self, batch: Transitions) -> Metrics:
        """Take one critic and multiplier step, then update the targets; SAC's step if the penalty weight is 0."""
        if not self.conservatism:
            return super().update_critic(batch)
        loss, penalty = self.conservative_loss(batch)
        metrics = {"critic_loss": self.critic_optimizer.step(loss), "penalty": penalty}
        polyak_update(self.target_critic, self.critic, self.config.tau)
        if self.config.gap is not None:
            metrics["multiplier_loss"] = self.multiplier_optimizer.step(self.multiplier_loss(penalty))
            metrics["multiplier"] = self.multiplier().detach()
        return metrics
