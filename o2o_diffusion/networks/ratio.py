"""The density ratio of two sets of state-action pairs, as in Lee et al. (2021), https://arxiv.org/abs/2107.00591."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from o2o_diffusion.networks.mlp import MLP
from o2o_diffusion.networks.normalizer import Normalizer

EPSILON = 1e-10


class DensityRatio(nn.Module):
    """w(s, a) = relu(mlp(s, a)), initially near 1; the optimum of `loss` is the online density over the offline one."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim + action_dim, hidden, 1, output_gain=0.01)
        nn.init.ones_(self.mlp.layers[-1].get_parameter("bias"))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B, observation_dim], [B, A] -> ratios [B], nonnegative."""
        return self.mlp(torch.cat([self.normalizer(observations), actions], dim=-1)).squeeze(-1).relu()


def ratio_loss(offline: Tensor, online: Tensor) -> Tensor:
    """E_off[-log(2 / (w + 1))] - E_on[log(2w / (w + 1))] from ratios [B] on rows of each: the Jensen-Shannon form."""
    on_offline = -(2 / (offline + 1) + EPSILON).log()
    on_online = -(2 * online / (online + 1) + EPSILON).log()
    return on_offline.mean() + on_online.mean()
