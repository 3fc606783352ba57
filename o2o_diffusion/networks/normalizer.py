"""Observation standardization as the first layer of a network."""

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Standardizes the last axis with fixed statistics, so that agents always take raw observations.

    The identity until `fit`. The statistics are buffers: saved with the network, but neither optimized nor changed by
    target averaging, so a target network must be fitted together with its original.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, rows: Tensor, *, min_std: float = 1e-3) -> None:
        """Set the statistics to those of `rows` [N, dim]; `min_std` keeps constant columns finite."""
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0, correction=0).clamp(min=min_std))

    def forward(self, x: Tensor) -> Tensor:
        """[..., B, dim] -> [..., B, dim]."""
        return (x - self.mean.unsqueeze(-2)) / self.std.unsqueeze(-2)
