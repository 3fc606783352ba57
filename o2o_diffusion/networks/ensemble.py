"""An ensemble of heteroscedastic regressions, trained on different rows: its members differ where rows are few."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.actors import Gaussian
from o2o_diffusion.networks.regression import Regression


class RegressionEnsemble(nn.Module):
    """`size` regressions of targets [B, target_dim] on inputs [B, input_dim], both raw."""

    def __init__(self, input_dim: int, target_dim: int, *, size: int = 4, hidden: Sequence[int] = (128, 128)):
        super().__init__()
        self.members = nn.ModuleList(Regression(input_dim, target_dim, hidden=hidden) for _ in range(size))

    def forward(self, inputs: Tensor) -> Gaussian:
        """Each member's distribution of the targets: mean and log standard deviation are [E, B, target_dim]."""
        predicted = [member(inputs) for member in self.members]
        return Gaussian(torch.stack([p.mean for p in predicted]), torch.stack([p.log_std for p in predicted]))

    def fit_normalizers(self, inputs: Tensor, targets: Tensor) -> None:
        """Set the statistics of every member, which are equal."""
        for member in self._regressions():
            member.fit_normalizers(inputs, targets)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """[], the members' losses, each on its own part of the batch, summed; B must be divisible by E."""
        parts = [rearrange(rows, "(e b) d -> e b d", e=len(self.members)) for rows in (inputs, targets)]
        members = zip(self._regressions(), *parts, strict=True)
        return torch.stack([member.loss(x, y) for member, x, y in members]).sum()

    def predict(self, inputs: Tensor, rng: ShardedRng) -> Gaussian:
        """The distribution [B, target_dim] of one member per row, drawn from `rng`."""
        predicted = self(inputs)
        members = rng.integers(len(self.members), len(inputs))[None, :, None]
        mean, log_std = (
            values.gather(0, members.expand(1, *values.shape[1:]))[0] for values in (predicted.mean, predicted.log_std)
        )
        return Gaussian(mean, log_std)

    def _regressions(self) -> list[Regression]:
        return [member for member in self.members if isinstance(member, Regression)]
