"""Calibrated Q-learning, Cal-QL (Nakamoto et al., 2023), https://arxiv.org/abs/2303.05479."""

import torch
from torch import Tensor

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Cadence, Phase


class CalQL(CQL):
    """CQL that lowers Q on policy actions no further than the data's discounted returns, offline and online.

    Unknown returns set no bound. Online updates run after each episode, once its returns are known.
    """

    def calibrate(self, q: Tensor, returns: Tensor) -> Tensor:
        """Raise `q` [..., M, B, 3N] of the policy actions to at least `returns` [..., B]."""
        return raised(q, returns, self.config.penalty_actions)

    def cadence(self, budget: Budget) -> Cadence:
        """Run updates after each episode."""
        return budget.cadence(block_steps=0)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; raises InputError if there are offline rows and none has a return."""
        super().begin_phase(phase, replay)
        check_returns(replay)


def raised(q: Tensor, returns: Tensor, num_uniform: int) -> Tensor:
    """Raise `q` [..., M, B, N] to at least `returns` [..., B], except for the first `num_uniform` actions."""
    uniform, policy = q.tensor_split([num_uniform], dim=-1)
    return torch.cat([uniform, torch.maximum(policy, returns[..., None, :, None])], dim=-1)


def check_returns(replay: Replay) -> None:
    """Raise InputError if there are offline rows and none has a return."""
    if len(replay.offline) and not replay.offline.all().returns.isfinite().any():
        raise InputError(
            f"none of the {len(replay.offline)} offline rows has a return, which Cal-QL needs: give a dataset of whole"
            " episodes, or use plain CQL"
        )
