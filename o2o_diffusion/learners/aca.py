"""Actor-critic alignment, ACA (Yu and Zhang, 2023), https://proceedings.mlr.press/v202/yu23k.html, on SAC.

The offline critic is discarded at the switch. The new one is a residual plus the log-density of the frozen offline
policy, so that it ranks actions as that policy does, and plain SAC continues from there.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.learners.schedules import Scheduled
from o2o_diffusion.networks.actors import TanhGaussianActor
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase, Shares
from o2o_diffusion.types import Metrics, Transitions


class AlignedCritic(Critic):
    """A critic ensemble R plus `weight` times the log-density of a frozen policy, bounded below, for every member.

    The bound c(s) is the lower of the log-densities at `width` standard deviations on either side of the mean, before
    the tanh; softplus(log pi(a|s) - c) + c approaches it smoothly. Only the parameters of R, `mlp`, are trained.
    """

    weight: Tensor

    def __init__(self, *dims: Any, reference: TanhGaussianActor, width: float, **options: Any):
        super().__init__(*dims, **options)
        self.reference, self.width = reference.requires_grad_(False), width
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, observations: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """[B, observation_dim], [B, A] -> q [E, B]; with N actions per row, [B, N, A] -> [E, B, N]."""
        bonus = self.bounded_log_prob(observations, actions)
        bonus = self.weight.view(*self.weight.shape, *[1] * (bonus.ndim - self.weight.ndim)) * bonus
        return super().forward(observations, actions, members) + bonus.unsqueeze(-actions.ndim + observations.ndim - 2)

    def bounded_log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B] or [B, N], softplus(log pi(a|s) - c(s)) + c(s), differentiable in `actions`."""
        policy = self.reference(observations)
        if actions.ndim > observations.ndim:
            policy = policy.repeat(actions.shape[-2])
        with torch.no_grad():
            reach = self.width * policy.base.log_std.exp()
            edges = [policy.log_prob((policy.base.mean + side * reach).tanh()) for side in (-1, 1)]
            bound = torch.minimum(*edges)
        return F.softplus(policy.log_prob(actions) - bound) + bound


class ACA(Scheduled, SAC):
    """SAC with cloning and a state-only baseline Z offline; online SAC whose critics start as Z + log pi of the policy.

    Offline, Z makes log pi + Z consistent with the Bellman equation. At the switch, the policy is frozen as the
    reference, the critics' residuals become Z (action weights 0), the temperature is 1, and offline rows are dropped.
    The weight of the log-density then falls linearly. The authors also keep the 50 best offline episodes of some
    datasets, and have another policy for AntMaze; both are left out. The order of the offline steps and whether Adam's
    moments are kept are not known to us: critics, actor, baseline; moments of the new critics start anew.
    """

    @dataclass(frozen=True)
    class Config(SAC.Config):
        """Defaults are the authors' for medium datasets."""

        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        cloning_scale: Annotated[float, "weight of Q, normalized by mean |Q|, relative to cloning (c)", Ge(0)] = 30.0
        width: Annotated[float, "standard deviations at which the log-density is bounded (beta)", Gt(0)] = 7.0
        density_weight: Annotated[float, "weight of the log-density at the switch", Ge(0)] = 1.0
        min_density_weight: Annotated[float, "final weight of the log-density", Ge(0)] = 0.5
        decay_steps: Annotated[float, "environment steps in which the weight would reach 0", Gt(0)] = 40_000
        max_grad_norm: Annotated[float, "clipping bound of the online actor's gradient", Gt(0)] = 0.25

    config: Config
    critic: AlignedCritic
    target_critic: AlignedCritic
    state_fields = (*SAC.state_fields, *Scheduled.state_fields)

    def build(self) -> None:
        """Create SAC's networks and the baseline, an ensemble like the critics but without actions."""
        super().build()
        c = self.config
        self.critic_optimizer = Optimizer(self.critic.mlp.parameters(), c.learning_rate)
        options = {"ensemble_size": c.ensemble_size, "layer_norm": c.layer_norm}
        self.baseline = Critic(self.spec.observation_dim, 0, c.critic_hidden or c.hidden, **options).to(self.device)
        self.baseline_optimizer = Optimizer(self.baseline.parameters(), c.learning_rate)

    def build_critic(self, **options: Any) -> AlignedCritic:
        """The critic ensemble with the reference policy; `options` are passed to its constructor."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        own = {"ensemble_size": c.ensemble_size, "layer_norm": c.layer_norm, "width": c.width}
        return AlignedCritic(*dims, c.critic_hidden or c.hidden, reference=self.build_actor(), **own, **options)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; align critic and actor at the first online one."""
        aligns = phase.is_online and not self.phase.is_online
        super().begin_phase(phase, replay)
        if aligns:
            self.align()

    @torch.no_grad()
    def align(self) -> None:
        """Freeze the policy as the reference, make the residuals Z, and set temperature and log-density weight."""
        self.critic.reference.load_state_dict(self.actor.state_dict())
        source, target = self.baseline.mlp.state_dict(), self.critic.mlp.state_dict()
        first = target["layers.0.weight"].zero_()  # [E, S + A, H]
        first[..., : self.spec.observation_dim, :] = source["layers.0.weight"]
        self.critic.mlp.load_state_dict(source | {"layers.0.weight": first})
        self.critic.weight.fill_(self.config.density_weight)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.critic_optimizer.reset()
        self.temperature.log.zero_()

    def state_values(self, observations: Tensor) -> Tensor:
        """Z(s) [E, B] of the baseline."""
        return self.baseline(observations, observations.new_empty(*observations.shape[:-1], 0))

    def actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """SAC's loss; offline, times cloning_scale / mean |Q|, minus E[log pi(a|s)] of the rows to clone."""
        if self.phase.is_online:
            return super().actor_loss(batch)
        policy = self.policy(batch.observations)
        actions, log_prob = policy.sample_with_log_prob(self.rng)
        q = self.values(batch.observations, actions)
        scale = self.config.cloning_scale / mean(q.abs())
        improvement = self.actor_weights(batch) * (q - self.temperature().detach()[..., None] * log_prob)
        cloning = self.cloning_weights(batch) * batch.regularization * policy.log_prob(batch.actions)
        return -(scale[..., None] * improvement + cloning).mean(-1), log_prob.detach()

    def baseline_loss(self, batch: Transitions) -> Tensor:
        """E[(log pi(a|s) + Z(s) - y)^2], y = r + discount * ((1 - temperature) log pi(a'|s') + min Z(s'))."""
        with torch.no_grad():
            log_prob = self.policy(batch.observations).log_prob(batch.actions)
            _, next_log_prob = self.policy(batch.next_observations).sample_with_log_prob(self.rng)
            entropy = (1 - self.temperature()[..., None]) * next_log_prob
            target = batch.rewards + batch.discounts * (entropy + self.state_values(batch.next_observations).amin(-2))
        error = self.state_values(batch.observations) + (log_prob - target).unsqueeze(-2)  # [..., E, B]
        return (batch.weights * error.square().sum(-2)).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        """Run SAC's update and, offline, one step of the baseline; online, with the current log-density weight."""
        self.actor_optimizer.max_grad_norm = self.config.max_grad_norm if self.phase.is_online else None
        if not self.phase.is_online:
            return super().update(batch) | {"baseline_loss": self.baseline_optimizer.step(self.baseline_loss(batch))}
        for critic in (self.critic, self.target_critic):
            critic.weight.fill_(self.density_weight())
        return super().update(batch)

    def density_weight(self) -> float:
        """The weight of the log-density after the current number of online steps."""
        c = self.config
        return max(c.density_weight * (1 - self.online_steps / c.decay_steps), c.min_density_weight)

    def online_shares(self) -> Shares:
        """Online rows only."""
        return Shares(online=1.0)
