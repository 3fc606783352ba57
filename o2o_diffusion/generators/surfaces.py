"""Surfaces that observations never leave: linear relations between columns, and unit quaternions or directions."""

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
"""Largest deviation from a surface, in standard deviations of a column, or relative to a norm."""


class Surfaces(nn.Module):
    """Projects observations [B, D] onto the surfaces found in real ones.

    Linear relations (a relative position among two absolute ones, a constant column) are the directions in which
    standardized observations don't vary. Norms are those of pairs of columns, such as (cos, sin), and of runs of three
    or four, such as a quaternion, that are equal in all rows.
    """

    mean: Tensor
    std: Tensor
    flat: Tensor
    groups: Tensor
    norms: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("flat", torch.zeros(dim, dim))  # projection onto the directions without variance
        self.register_buffer("groups", torch.zeros(dim, dim))  # each row marks the columns of a norm, or none
        self.register_buffer("norms", torch.ones(dim))

    def fit(self, observations: Tensor) -> None:
        """Find the surfaces of `observations` [N, D]."""
        rows = observations.double()
        mean, std = rows.mean(0), rows.std(0, correction=0)
        std = torch.where(std > 1e-6 * (1 + mean.abs()), std, 1.0)
        normal = (rows - mean) / std
        variances, directions = torch.linalg.eigh(normal.T @ normal / len(rows))
        flat = directions[:, variances < TOLERANCE**2]
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.flat.copy_(flat @ flat.T)
        self.groups.zero_()
        self.norms.fill_(1.0)
        taken = torch.zeros(rows.shape[1], dtype=torch.bool, device=rows.device)
        for columns in constant_norms(rows):
            if not taken[columns].any():
                self.groups[columns[0], columns] = 1.0
                self.norms[columns[0]] = rows[:, columns].square().sum(1).mean().sqrt()
                taken[columns] = True

    def forward(self, observations: Tensor) -> Tensor:
        """The nearest observations on the surfaces."""
        normal = (observations - self.mean) / self.std
        observations = observations - (normal @ self.flat) * self.std
        squared = observations.square() @ self.groups.T  # [B, group]
        scale = self.norms / squared.sqrt().clamp(min=1e-6)
        factors = 1 + (scale - 1) @ self.groups
        return observations * factors


def constant_norms(rows: Tensor) -> list[list[int]]:
    """Pairs of columns, and runs of three and four, that vary in `rows` [N, D] while their norm does not."""
    squares = rows.square()
    mean, dim = squares.mean(0), rows.shape[1]
    covariance = (squares - mean).T @ (squares - mean) / len(rows)
    pairs = [[i, j] for i in range(dim) for j in range(i + 1, dim)]
    runs = [list(range(i, i + size)) for size in (3, 4) for i in range(dim - size + 1)]
    found = []
    for columns in pairs + runs:
        total, variance = mean[columns].sum(), covariance[columns][:, columns].sum()
        is_constant = variance.clamp(min=0).sqrt() <= 2 * TOLERANCE * total
        if is_constant and (covariance.diagonal()[columns].sqrt() > 0.05 * total).any():
            found.append(columns)
    return found
