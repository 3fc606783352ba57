"""Adaptive policy learning (Zheng et al., 2023), https://arxiv.org/abs/2303.07693, on an ensemble CQL: GCQL.

Conservatism is for rows that the policy did not make lately. Which rows these are the sampler says, by
`batch.regularization` (`configs/sampler/choice.yaml`): 0 takes the penalty off a row.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.networks.actors import TanhGaussianActor
from o2o_diffusion.schedule import Budget, Cadence, Phase


class GCQL(CQL):
    """CQL with five critics, targets of random pairs, and long blocks of updates on batches from one pool each."""

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults are those of the authors' code, initial weights apart."""

        hidden: Annotated[tuple[int, ...], "widths of the hidden layers of every network"] = (256, 256, 256)
        ensemble_size: Annotated[int, "number of critics"] = 5
        mean_q: Annotated[bool, "the actor ascends the mean of all critics, not their minimum"] = True
        backup_actions: Annotated[int, "next actions of which the best counts in the critics' target"] = 1
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m, b, from 1 and -1"] = False
        block_steps: Annotated[int, "environment steps between blocks of updates"] = 1_000

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are its own."""
        return super().build_actor(log_std_range=(-5.0, 2.0), **options)

    def cadence(self, budget: Budget) -> Cadence:
        """Blocks, which owe the budget's updates for each of their steps."""
        return budget.blocks(self.config.block_steps)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """As CQL, with batches drawn whole from one pool."""
        return tuple(replace(p, shares=replace(p.shares, whole_batches=True)) for p in super().phases(budget))
