"""A learned energy of noised rows for contrastive energy prediction (Lu et al., 2023).

https://arxiv.org/abs/2304.12824
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from o2o_diffusion.networks.residual_mlp import FourierFeatures


class EnergyMLP(nn.Module):
    """A scalar energy of a row's `support` columns ([D], bool) and noise level; low for desired rows.

    Smooth (SiLU) because guidance uses its gradient; flat at first, so that an untrained energy does not guide. Sizes
    and activation are not the paper's.
    """

    support: Tensor

    def __init__(self, support: Tensor, *, hidden: Sequence[int] = (256, 256, 256)):
        super().__init__()
        self.register_buffer("support", support.clone())
        self.fourier = FourierFeatures()
        widths = [len(support) + self.fourier.out_features, *hidden]
        layers = (nn.Sequential(nn.Linear(*sizes), nn.SiLU()) for sizes in pairwise(widths))
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], 1)
        self.flatten()

    def flatten(self) -> None:
        """Reset the energy to 0 for all rows; the hidden layers keep their weights."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """[B, D] -> [B], in float32; `noise` is [B] or [1]."""
        noise = self.fourier(noise).expand(len(x), -1)
        h = self.hidden(torch.cat([torch.where(self.support, x, 0.0), noise], dim=1))
        with torch.autocast(x.device.type, enabled=False):  # differences between energies are small
            return self.output(h.float()).squeeze(1)
