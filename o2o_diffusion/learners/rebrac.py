"""ReBRAC (Tarasov et al., 2023), https://arxiv.org/abs/2305.09836: TD3+BC with separate actor and critic penalties."""

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.schedules import Scheduled, linear
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.types import Transitions


class ReBRAC(Scheduled, TD3BC):
    """TD3+BC with an actor that maximizes min Q, and a second penalty in the critics' target.

    The second penalty is on the distance of the next action to the data's; without a known one (the last row of an
    episode, generated rows) it is 0. Both are sums over action dimensions. Online, the actor's penalty decays linearly
    to `min_decay` of its weight over the phase, and the critics' is dropped. Layer normalization precedes the ReLU here
    and follows it in the authors' code.
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Defaults are the authors'; they tune `bc` and `critic_bc` for each dataset, here hopper-medium's."""

        batch_size: Annotated[int, "transitions per offline update, over all processes", Ge(1)] = 1024
        online_batch_size: Annotated[int, "transitions per online update, over all processes", Ge(1)] = 256
        learning_rate: Annotated[float, "Adam learning rate of every network, offline", Gt(0)] = 1e-3
        online_learning_rate: Annotated[float, "Adam learning rate of every network, online", Gt(0)] = 3e-4
        hidden: Annotated[tuple[int, ...], "hidden layer widths of every network", Ge(1)] = (256, 256, 256)
        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        layer_norm: Annotated[bool, "layer normalization in the critics' hidden layers"] = True
        alpha: Annotated[float, "weight of Q, normalized by mean |Q|, relative to cloning", Ge(0)] = 1.0
        bc: Annotated[float, "weight of the actor's penalty (beta_a)", Ge(0)] = 0.01
        critic_bc: Annotated[float, "weight of the critics' penalty (beta_c)", Ge(0)] = 0.001
        min_decay: Annotated[float, "final fraction of `bc` in the online phase", Interval(ge=0, le=1)] = 0.0
        exploration_noise: Annotated[float, "standard deviation of the exploration noise", Ge(0)] = 0.03

    config: Config
    state_fields = (*TD3BC.state_fields, *Scheduled.state_fields)

    @property
    def bc(self) -> float:
        """The current weight of the actor's penalty."""
        fraction = self.online_steps / max(self.phase.env_steps, 1)
        return self.config.bc * linear(1.0, self.config.min_decay, fraction)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[B], r + discount * (min Q'(s', a') - critic_bc * |a' - next data action|^2), the last term offline only."""
        next_actions = self.target_actions(batch.next_observations)
        next_v = self.target_values(batch.next_observations, next_actions)
        if not self.phase.is_online:
            distance = (next_actions - batch.next_actions).square().sum(-1)
            next_v = next_v - self.config.critic_bc * batch.regularization * distance.nan_to_num(0.0)
        return batch.rewards + batch.discounts * next_v

    def policy_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the value that the actor maximizes: min Q."""
        return self.values(observations, actions)

    def q_scale(self, q: Tensor) -> Tensor:
        """lambda = alpha / mean |min Q|."""
        return self.config.alpha / mean(q.abs())

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], bc * |pi(s) - a|^2 on the rows to clone."""
        cloned = self.cloning_weights(batch) * batch.regularization
        return self.bc * cloned * (actions - batch.actions).square().sum(-1)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; online with its own learning rate."""
        super().begin_phase(phase, replay)
        if phase.is_online:
            for optimizer in (self.actor_optimizer, self.critic_optimizer):
                optimizer.learning_rate = self.config.online_learning_rate

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The default phases, online with their own batch size."""
        size = self.config.online_batch_size
        return tuple(replace(phase, batch_size=size) if phase.is_online else phase for phase in super().phases(budget))
