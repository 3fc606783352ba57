"""Warm-start RL: fine-tuning without the offline data (Zhou et al., 2024), https://arxiv.org/abs/2412.07762."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt
from torch import Tensor, nn

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.cal_ql import check_returns, raised
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.networks.actors import Softplus, TanhGaussianActor
from o2o_diffusion.networks.mlp import RELU_GAIN
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Cadence, Phase, Shares
from o2o_diffusion.types import Metrics, Transitions


class WSRL(CQL):
    """CQL (Cal-QL if `calibrated`) offline; online, large-ensemble SAC on new data only.

    Networks and optimizers are kept. The frozen pretrained policy first collects a few thousand steps, so that the
    critics train on its data rather than on the results of their own errors. An online update takes `critic_steps`
    critic steps on `batch_size` rows each, then one actor and temperature step on all of those rows.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults are those of the authors' code, except for the initial weights; both phases share the ensemble."""

        calibrated: Annotated[bool, "pretrain with Cal-QL instead of CQL"] = False
        online_conservatism: Annotated[float | None, "penalty weight online; null: same as offline", Ge(0)] = 0.0
        ensemble_size: Annotated[int, "number of critics", Ge(1)] = 10
        subset_replacement: Annotated[bool, "sample target critics with replacement"] = True
        penalty_critics: Annotated[int | None, "penalized critics, resampled at each update; null: all", Ge(1)] = 2
        backup_actions: Annotated[int, "number of next actions in the max-Q backup; 10 for AntMaze", Ge(1)] = 1
        layer_norm: Annotated[bool, "layer normalization in the hidden layers of critics and actor"] = True
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m and b, initially 1 and -1"] = False
        state_dependent_std: Annotated[bool, "state-dependent policy sigma; false for AntMaze"] = True
        output_gain: Annotated[float, "initialization gain of the output layers", Gt(0)] = RELU_GAIN
        critic_steps: Annotated[int, "critic steps per online update", Ge(1)] = 4
        warmup_steps: Annotated[
            int, "initial environment steps with the frozen policy; the run's warmup_steps if larger", Ge(0)
        ] = 5_000

    config: Config

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are passed to its constructor."""
        own = {"layer_norm": self.config.layer_norm, "state_dependent_std": self.config.state_dependent_std}
        return super().build_actor(log_std_range=(math.log(1e-5), math.log(10.0)), **own, **options)

    def build_multiplier(self) -> nn.Module:
        """The penalty multiplier, parameterized by a softplus, initially 1."""
        return Softplus(1.0)

    def calibrate(self, q: Tensor, returns: Tensor) -> Tensor:
        """Cal-QL's `q` [..., M, B, 3N] if `calibrated`, else CQL's."""
        return raised(q, returns, self.config.penalty_actions) if self.config.calibrated else q

    def update(self, batch: Transitions) -> Metrics:
        """Run CQL's update offline; online, critic steps on equal parts of the batch, then one actor step."""
        if not self.phase.is_online:
            return super().update(batch)
        self.num_updates += 1
        metrics = {}
        for part in batch.chunk(self.config.critic_steps):
            metrics = self.update_critic(part)
        return metrics | self.update_actor(batch)

    @property
    def min_warmup_steps(self) -> int:
        """`warmup_steps` of the settings."""
        return self.config.warmup_steps

    @property
    def batches_per_update(self) -> int:
        """One batch per critic step."""
        return self.config.critic_steps

    def cadence(self, budget: Budget) -> Cadence:
        """Run updates after every step or, if `calibrated`, after each episode, once its returns are known."""
        return budget.cadence(block_steps=0 if self.config.calibrated else 1)

    def online_shares(self) -> Shares:
        """Online rows only."""
        return Shares(online=1.0)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; raises InputError if `calibrated` and no offline row has a return."""
        super().begin_phase(phase, replay)
        if self.config.calibrated:
            check_returns(replay)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The default phases; raises InputError without pretraining in this or an earlier run."""
        if not (budget.pretrained or (budget.pretrain_updates and self.config.pretrain)):
            raise InputError(
                "WSRL fine-tunes a pretrained policy: set pretrain_updates above 0 and learner.pretrain=true, give"
                " pretrained=<folder of a run>, or start from nothing with --learner rlpd"
            )
        return super().phases(budget)
