"""Random network distillation: the error of predicting random features (Burda et al., 2019), arXiv 1810.12894."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import mean
from o2o_diffusion.networks.mlp import MLP

CLIP = 5.0


class RunningMoments(nn.Module):
    """Mean and standard deviation of the columns of all batches so far, equal on every process."""

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.ones(dim))

    @torch.no_grad()
    def measure(self, rows: Tensor) -> None:
        """Include `rows` [B, dim]."""
        columns = rows.movedim(-1, -2)
        self.count.add_(1)
        rate = 1 / self.count[..., None]
        self.mean.add_(rate * (mean(columns) - self.mean))
        self.square.add_(rate * (mean(columns.square()) - self.square))

    @property
    def std(self) -> Tensor:
        """[dim], floored to keep divisions by it finite; 1 before the first batch."""
        return (self.square - self.mean.square()).clamp(min=1e-8).sqrt()


class Novelty(nn.Module):
    """The mean squared error of a trained network on the features of a frozen random one, in units of its spread."""

    def __init__(self, observation_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.predictor = MLP(observation_dim, hidden[:-1], hidden[-1])
        self.features = MLP(observation_dim, hidden[:-1], hidden[-1]).requires_grad_(False)
        self.moments, self.errors = RunningMoments(observation_dim), RunningMoments(1)

    def error(self, observations: Tensor) -> Tensor:
        """[B] errors at `observations` [B, observation_dim], standardized and clipped at +-5."""
        x = (observations - self.moments.mean.unsqueeze(-2)) / self.moments.std.unsqueeze(-2)
        x = x.clamp(-CLIP, CLIP)
        return (self.predictor(x) - self.features(x)).square().mean(-1)

    @torch.no_grad()
    def bonus(self, observations: Tensor) -> Tensor:
        """[B], errors divided by their running standard deviation; includes the rows in the running moments."""
        self.moments.measure(observations)
        errors = self.error(observations)
        self.errors.measure(errors[..., None])
        return errors / self.errors.std
