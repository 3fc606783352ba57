"""A variational autoencoder of actions given observations, as in SPOT, https://arxiv.org/abs/2202.06239."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.mlp import MLP
from o2o_diffusion.networks.normalizer import Normalizer

LOG_STD_RANGE = -4.0, 15.0


class ActionVAE(nn.Module):
    """q(z|s, a) and p(a|s, z), z of twice the width of an action; `loss` is low on actions like the data's."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int], *, beta: float = 0.5):
        super().__init__()
        self.normalizer, self.latent_dim, self.beta = Normalizer(observation_dim), 2 * action_dim, beta
        self.encoder = MLP(observation_dim + action_dim, hidden, 2 * self.latent_dim, output_gain=1.0)
        self.decoder = MLP(observation_dim + self.latent_dim, hidden, action_dim, output_gain=1.0)

    def encode(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """[B, observation_dim], [B, A] -> mean and log standard deviation of z, [B, 2A] each."""
        outputs = self.encoder(torch.cat([self.normalizer(observations), actions], dim=-1))
        mean, log_std = outputs.chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def decode(self, observations: Tensor, z: Tensor) -> Tensor:
        """[B, observation_dim], [B, 2A] -> actions [B, A] in [-1, 1]."""
        return self.decoder(torch.cat([self.normalizer(observations), z], dim=-1)).tanh()

    def loss(self, observations: Tensor, actions: Tensor, rng: ShardedRng) -> Tensor:
        """[B], |a - decode(s, z)|^2 / A + beta * KL(q(z|s, a), N(0, I)) / 2A, one z ~ q, differentiable."""
        mean, log_std = self.encode(observations, actions)
        z = mean + log_std.exp() * rng.normal(*mean.shape)
        error = (self.decode(observations, z) - actions).square().mean(-1)
        kl = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).mean(-1)
        return error + self.beta * kl
