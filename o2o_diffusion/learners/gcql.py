"""GCQL: adaptive policy learning (Zheng et al., 2023), https://arxiv.org/abs/2303.07693, on ensemble CQL.

The penalty applies only to rows that the policy did not collect recently. The sampler marks them in
`batch.regularization` (`configs/sampler/choice.yaml`): 0 removes a row's penalty.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge

from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.networks.actors import TanhGaussianActor
from o2o_diffusion.schedule import Budget, Cadence, Shares


class GCQL(CQL):
    """CQL with five critics, targets from random pairs, and long blocks of updates on single-pool batches."""

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults are those of the authors' code, except for the initial weights."""

        hidden: Annotated[tuple[int, ...], "hidden layer widths of every network", Ge(1)] = (256, 256, 256)
        ensemble_size: Annotated[int, "number of critics", Ge(1)] = 5
        mean_q: Annotated[bool, "the actor maximizes the mean of all critics instead of their minimum"] = True
        backup_actions: Annotated[int, "number of next actions in the max-Q backup", Ge(1)] = 1
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m and b, initially 1 and -1"] = False
        block_steps: Annotated[int, "environment steps between blocks of updates", Ge(0)] = 1_000

    config: Config

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policy network; `options` are passed to its constructor."""
        return super().build_actor(log_std_range=(-5.0, 2.0), **options)

    def cadence(self, budget: Budget) -> Cadence:
        """Run updates in blocks, every `block_steps` environment steps."""
        return budget.cadence(self.config.block_steps)

    def offline_shares(self) -> Shares:
        """The default shares, with each batch from a single pool."""
        return replace(super().offline_shares(), whole_batches=True)

    def online_shares(self) -> Shares:
        """The default shares, with each batch from a single pool."""
        return replace(super().online_shares(), whole_batches=True)
