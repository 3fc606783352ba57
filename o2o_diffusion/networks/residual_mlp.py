"""The denoiser of SynthER (Lu et al., 2023), https://arxiv.org/abs/2303.06614, with CFDG's label embedding."""

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """A noise level as [x, sin 2 pi w x, cos 2 pi w x] with fixed frequencies w ~ N(0, 1).

    The frequencies are a buffer: they are saved, and are not trained.
    """

    frequencies: Tensor

    def __init__(self, num_frequencies: int = 8):
        super().__init__()
        self.out_features = 2 * num_frequencies + 1
        self.register_buffer("frequencies", torch.randn(num_frequencies))

    def forward(self, x: Tensor) -> Tensor:
        """[B] -> [B, 2 * num_frequencies + 1]."""
        angles = 2 * math.pi * x[:, None] * self.frequencies
        return torch.cat([x[:, None], angles.sin(), angles.cos()], dim=1)


class ResidualMLP(nn.Module):
    """`depth` residual blocks h + Linear(ReLU(h)) between two linear maps; noise level and label enter by addition.

    With `num_labels`, row `num_labels` of the embedding is the null label; with 0 there are no labels. The embedding's
    width, 128, is a default of ours: the paper of CFDG (arXiv 2508.06806) does not state it.
    """

    def __init__(self, dim: int, *, width: int = 256, depth: int = 4, embedding_dim: int = 128, num_labels: int = 0):
        super().__init__()
        fourier = FourierFeatures()
        self.noise_embedding = nn.Sequential(
            fourier,
            nn.Linear(fourier.out_features, embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
        )
        self.label_embedding = (
            nn.Sequential(nn.Embedding(num_labels + 1, 128), nn.Linear(128, embedding_dim)) if num_labels else None
        )
        self.encode = nn.Linear(dim, embedding_dim)
        self.widen = nn.Linear(embedding_dim, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for _ in range(depth))
        self.decode = nn.Sequential(nn.ReLU(), nn.Linear(width, dim))

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B, dim] -> [B, dim]; `noise` is [B] or [1], `labels` [B] int64."""
        h = self.encode(x) + self.noise_embedding(noise)
        if self.label_embedding is not None:
            h = h + self.label_embedding(labels)
        h = self.widen(h)
        for block in self.blocks:
            h = h + block(h)
        return self.decode(h)
