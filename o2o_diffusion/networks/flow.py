"""Policies that map noise to actions: a flow, integrated in steps, and a network that takes one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.mlp import MLP
from o2o_diffusion.networks.normalizer import Normalizer


class Flow(nn.Module):
    """The velocity v(s, x, t) of a flow from noise at t = 0 to actions at t = 1."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim + action_dim + 1, hidden, action_dim, output_gain=1.0)

    def forward(self, observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """[B, observation_dim], [B, A], [B, 1] -> velocity [B, A]."""
        return self.mlp(torch.cat([self.normalizer(observations), x, t], dim=-1))

    @torch.no_grad()
    def integrate(self, observations: Tensor, noise: Tensor, steps: int) -> Tensor:
        """[B, A], actions in [-1, 1] from `noise` [B, A] by `steps` Euler steps."""
        x = noise
        for step in range(steps):
            x = x + self(observations, x, torch.full_like(x[..., :1], step / steps)) / steps
        return x.clamp(-1, 1)


class OneStepActor(nn.Module):
    """Actions mu(s, z) from noise z in one step; unbounded."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim + action_dim, hidden, action_dim, output_gain=1.0)

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """[B, observation_dim], [B, A] -> actions [B, A]."""
        return self.mlp(torch.cat([self.normalizer(observations), noise], dim=-1))


@dataclass(frozen=True)
class OneStep:
    """The distribution of mu(s, z), z ~ N(0, I), at `observations` [B, observation_dim]; it has no density."""

    actor: OneStepActor
    observations: Tensor
    action_dim: int

    @property
    def mode(self) -> Tensor:
        """[B, A], the actions at z = 0."""
        return self.actor(
            self.observations, self.observations.new_zeros(*self.observations.shape[:-1], self.action_dim)
        )

    def sample(self, rng: ShardedRng) -> Tensor:
        """[B, A], differentiable in the parameters; unbounded."""
        return self.actor(self.observations, rng.normal(*self.observations.shape[:-1], self.action_dim))

    def log_prob(self, actions: Tensor) -> Tensor:
        """Raise TypeError, because there is no density."""
        raise TypeError("a policy that transforms noise has no density in closed form")
