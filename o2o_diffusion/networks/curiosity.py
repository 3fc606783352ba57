"""Intrinsic curiosity: how far a transition is from what is predicted (Pathak et al., 2017), arXiv 1705.05363.

With the sizes that PGR gives it (Wang et al., 2025), https://arxiv.org/abs/2410.18082.
"""

import torch
from torch import Tensor, nn

from o2o_diffusion.networks.normalizer import Normalizer


class ForwardBlock(nn.Module):
    """h + Linear(SiLU(Linear([h, a]))): one residual step from the features of a state towards those of the next."""

    def __init__(self, width: int, action_dim: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width + action_dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, actions: Tensor) -> Tensor:
        """[B, width], [B, action_dim] -> [B, width]."""
        return h + self.layers(torch.cat([h, actions], dim=-1))


class Curiosity(nn.Module):
    """Features h of observations, learned by telling the action from h(s) and h(s'), and a model f of their change.

    A transition's score is the error of f. Three layers of 256 and SiLU are PGR's; `depth` residual blocks that start
    from h(s) itself, with weights of their own, and an inverse model of one hidden layer without batch normalisation
    (whose statistics would depend on the number of processes) are ours.
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
        """[B] scores |h(s') - f(h(s), a)|^2 / width of raw [B, observation_dim], [B, action_dim] and the next."""
        return self.forward_error(self.encode(observations), actions, self.encode(next_observations))

    def loss(self, observations: Tensor, actions: Tensor, next_observations: Tensor) -> Tensor:
        """Mean score + mean squared error of the actions told from h(s) and h(s'); both weigh the same."""
        h, next_h = self.encode(observations), self.encode(next_observations)
        inverse_error = (self.inverse_model(torch.cat([h, next_h], dim=-1)) - actions).square()
        return self.forward_error(h, actions, next_h).mean() + inverse_error.mean()

    def encode(self, observations: Tensor) -> Tensor:
        """[B, observation_dim] -> h [B, width]."""
        return self.encoder(self.normalizer(observations))

    def forward_error(self, h: Tensor, actions: Tensor, next_h: Tensor) -> Tensor:
        """[B], h(s') being a constant: features that shrink to be predicted tell nothing."""
        for block in self.forward_model:
            h = block(h, actions)
        return (next_h.detach() - h).square().mean(-1)
