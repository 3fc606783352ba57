"""Weights of generated rows in the terms that train an actor; critics always see all rows at their own weights.

A term that clones actions copies whatever the critics overrate in them, so generated actions are left out of it by
default. Where an actor maximizes Q, the actions are its own, and a generated row only adds a state.
"""

import torch
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.types import Transitions


def reweighted(batch: Transitions, generated: float) -> Tensor:
    """[B], `batch.weights` with generated rows weighted by `generated` relative to real ones.

    The relative weights have mean 1 over all processes, so that the loss is a mean over the rows that count and the
    gradient's scale does not depend on the share of generated rows. Without rows that count, all weights are 0.
    """
    relative = torch.where(batch.is_generated, generated, 1.0)
    return batch.weights * relative / mean(relative).clamp(min=1e-6)[..., None]
