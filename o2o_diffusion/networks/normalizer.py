"""Observations of zero mean and unit spread, as the first layer of a network."""

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Standardises the last axis by fixed statistics, so that agents always take raw observations.

    The identity until `fit`. The statistics are buffers: saved with the network, trained by no optimiser and untouched
    by target averaging, so that a target network has to be fitted with its original.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, rows: Tensor, *, min_std: float = 1e-3) -> None:
        """Take the statistics of `rows` [N, dim]; the floor keeps constant columns finite."""
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0, correction=0).clamp(min=min_std))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return (x - self.mean) / self.std
