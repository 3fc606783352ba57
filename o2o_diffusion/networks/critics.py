"""State-action and state values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from o2o_diffusion.data.normalizer import Normalizer
from o2o_diffusion.networks.mlp import MLP


class Critic(nn.Module):
    """An ensemble of E state-action values with independent weights, evaluated together."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        ensemble_size: int = 2,
        layer_norm: bool = False,
    ):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim + action_dim, hidden, 1, ensemble_size=ensemble_size, layer_norm=layer_norm)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B, observation_dim], [B, action_dim] -> q [E, B]."""
        return self.mlp(torch.cat([self.normalizer(observations), actions], dim=-1)).squeeze(-1)


class Value(nn.Module):
    """A state value."""

    def __init__(self, observation_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim, hidden, 1)

    def forward(self, observations: Tensor) -> Tensor:
        """[B, observation_dim] -> v [B]."""
        return self.mlp(self.normalizer(observations)).squeeze(-1)
