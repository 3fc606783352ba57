"""Intrinsic curiosity: the prediction error of a transition (Pathak et al., 2017), arXiv 1705.05363.

Layer sizes are PGR's (Wang et al., 2025), https://arxiv.org/abs/2410.18082.
"""

import torch
from torch import Tensor, nn

from o2o_diffusion.networks.normalizer import Normalizer


class ForwardBlock(nn.Module):
    """h + Linear(SiLU(Linear([h, a]))): one residual step from the features of s toward those of s'."""

    def __init__(self, width: int, action_dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width + action_dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, actions: Tensor) -> Tensor:
        """[B, width], [B, action_dim] -> [B, width]."""
        return h + self.layers(torch.cat([h, actions], dim=-1))


class Curiosity(nn.Module):
    """Observation features h, learned by predicting the action from h(s) and h(s'), and a forward model f of h(s').

    The score of a transition is the error of f. The three layers of 256 units with SiLU are PGR's. The `depth` residual
    blocks (separate weights, starting from h(s) itself) and the inverse model (one hidden layer, no batch
    normalization, because its statistics would depend on the number of processes) are not from the paper.
    """

    def __init__(self, observation_dim: int, action_dim: int, *, width: int = 256, depth: int = 2):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.encoder = nn.Sequential(
            nn.Linear(observation_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.inverse_model = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, action_dim))
        self.forward_model = nn.ModuleList(ForwardBlock(width, action_dim) for _ in range(depth))

    def forward(self, observations: Tensor, actions: Tensor, next_observations: Tensor) -> Tensor:
        """[B] scores |h(s') - f(h(s), a)|^2 / width from raw observations, actions and next observations [B, dim]."""
        return self.forward_error(self.encode(observations), actions, self.encode(next_observations))

    def loss(self, observations: Tensor, actions: Tensor, next_observations: Tensor) -> Tensor:
        """Mean score plus the mean squared error of the actions predicted from h(s) and h(s'), equally weighted."""
        h, next_h = self.encode(observations), self.encode(next_observations)
        inverse_error = (self.inverse_model(torch.cat([h, next_h], dim=-1)) - actions).square()
        return self.forward_error(h, actions, next_h).mean() + inverse_error.mean()

    def encode(self, observations: Tensor) -> Tensor:
        """[B, observation_dim] -> h [B, width]."""
        return self.encoder(self.normalizer(observations))

    def forward_error(self, h: Tensor, actions: Tensor, next_h: Tensor) -> Tensor:
        """[B], with h(s') detached: otherwise shrinking the features would reduce the error."""
        for block in self.forward_model:
            h = block(h, actions)
        return (next_h.detach() - h).square().mean(-1)
