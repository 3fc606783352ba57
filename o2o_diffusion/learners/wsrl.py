"""Warm-start RL: fine-tuning without the offline data (Zhou et al., 2024), https://arxiv.org/abs/2412.07762."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import nn

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.networks.actors import Softplus, TanhGaussianActor
from o2o_diffusion.networks.mlp import RELU_GAIN
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase, Shares
from o2o_diffusion.types import Metrics, Transitions


class WSRL(CQL):
    """CQL (`calibrated`: Cal-QL) offline; online, networks and optimisers go on as a many-critic SAC on new data only.

    Some thousand steps of the frozen pretrained policy come first, so that the critics meet its data, not their own
    mistakes. An online update has `critic_steps` steps of the critics, each on `batch_size` rows, then one of actor and
    temperature on all of them.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults are those of the authors' code, initial weights apart; the ensemble serves both phases."""

        online_conservatism: Annotated[float | None, "weight of the penalty online; null: as offline"] = 0.0
        ensemble_size: Annotated[int, "number of critics"] = 10
        subset_replacement: Annotated[bool, "draw the same target critic more than once"] = True
        penalty_critics: Annotated[int | None, "critics with a penalty, drawn anew at each update; null: all"] = 2
        backup_actions: Annotated[int, "next actions of which the best counts in the target; AntMaze 10"] = 1
        layer_norm: Annotated[bool, "layer normalisation in the hidden layers of critics and actor"] = True
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m, b, from 1 and -1"] = False
        state_dependent_std: Annotated[bool, "the policy's sigma depends on the state; AntMaze false"] = True
        output_gain: Annotated[float, "gain of the output layers' initial weights"] = RELU_GAIN
        critic_steps: Annotated[int, "critic steps in an online update"] = 4
        warmup_steps: Annotated[int, "first environment steps, with the frozen policy; the run's own if more"] = 5_000

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    counters = (*CQL.counters, "batch_size")

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are its own."""
        own = {"layer_norm": self.config.layer_norm, "state_dependent_std": self.config.state_dependent_std}
        return super().build_actor(log_std_range=(math.log(1e-5), math.log(10.0)), **own, **options)

    def build_multiplier(self) -> nn.Module:
        """The multiplier of the penalty: the softplus of a parameter, 1 at first."""
        return Softplus(1.0)

    def update(self, batch: Transitions) -> Metrics:
        """Offline as CQL; online the critics' steps on equal parts of the batch, then actor and temperature."""
        if not self.is_online:
            return super().update(batch)
        self.num_updates += 1
        size, metrics = len(batch) // self.config.critic_steps, {}
        for step in range(self.config.critic_steps):
            metrics = self.update_critic(batch[size * step : size * (step + 1)])
        return metrics | self.update_actor(batch)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """As CQL; online updates take all their critic steps' rows at once."""
        super().begin_phase(phase, replay)
        self.batch_size = self.config.batch_size * (self.config.critic_steps if self.is_online else 1)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """Pretrain, warm up, fine-tune on online rows; raises InputError where one of them has nothing to do."""
        if not (budget.pretrain_updates and self.config.pretrain):
            raise InputError(
                "WSRL fine-tunes a pretrained policy: set pretrain_updates above 0 and learner.pretrain=true,"
                " or start from nothing with --learner rlpd"
            )
        warmup_steps = max(budget.warmup_steps, self.config.warmup_steps)
        phases = super().phases(replace(budget, warmup_steps=warmup_steps))
        return tuple(replace(p, shares=Shares(online=1.0)) if p.env_steps else p for p in phases)
