"""The denoising network of SynthER (Lu et al., 2023), https://arxiv.org/abs/2303.06614, with a condition embedding."""

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """Encodes a noise level x as [x, sin 2 pi w x, cos 2 pi w x] with fixed frequencies w ~ N(0, 1).

    The frequencies are a buffer: saved but not trained.
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


class LabelEmbedding(nn.Module):
    """Embedding of `num_labels` classes and the null label, class `num_labels`, with width `dim`.

    Table and projection follow SynthER's noise embedding; the table width of 128 is not in the CFDG paper
    (arXiv 2508.06806).
    """

    def __init__(self, num_labels: int, dim: int):
        super().__init__()
        self.null = num_labels
        self.layers = nn.Sequential(nn.Embedding(num_labels + 1, 128), nn.Linear(128, dim))

    def forward(self, labels: Tensor) -> Tensor:
        """[B] int64 -> [B, dim]."""
        return self.layers(labels)


class ScoreEmbedding(nn.Module):
    """Embedding of a real score, zeros for NaN (no score), as in PGR (https://arxiv.org/abs/2410.18082)."""

    null = float("nan")

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 512), nn.Mish(), nn.Linear(512, dim))

    def forward(self, scores: Tensor) -> Tensor:
        """[B] -> [B, dim]."""
        embedded = self.layers(scores.nan_to_num(0.0)[:, None])
        return torch.where(scores.isnan()[:, None], 0.0, embedded)


class VectorEmbedding(nn.Module):
    """Embedding of a vector, such as a state and an action."""

    def __init__(self, input_dim: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, input_dim] -> [B, dim]."""
        return self.layers(vectors)


class ResidualMLP(nn.Module):
    """`depth` residual blocks h + Linear(ReLU(h)) between linear maps; noise level and condition embeddings are added.

    `condition` embeds the condition, [B] or [B, input_dim] -> [B, embedding_dim]; None for an unconditional network.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 256,
        depth: int = 4,
        embedding_dim: int = 128,
        condition: LabelEmbedding | ScoreEmbedding | VectorEmbedding | None = None,
    ):
        super().__init__()
        fourier = FourierFeatures()
        self.noise_embedding = nn.Sequential(
            fourier,
            nn.Linear(fourier.out_features, embedding_dim),
            nn.SiLU(),
            nn.Linear(embedding_dim, embedding_dim),
        )
        self.condition_embedding = condition
        self.encode = nn.Linear(dim, embedding_dim)
        self.widen = nn.Linear(embedding_dim, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for _ in range(depth))
        self.decode = nn.Sequential(nn.ReLU(), nn.Linear(width, dim))

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """[B, dim] -> [B, dim]; `noise` is [B] or [1], `condition` [B] or [B, input_dim]."""
        h = self.encode(x) + self.noise_embedding(noise)
        if self.condition_embedding is not None:
            h = h + self.condition_embedding(condition)
        h = self.widen(h)
        for block in self.blocks:
            h = h + block(h)
        return self.decode(h)
