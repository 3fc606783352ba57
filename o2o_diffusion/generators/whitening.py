"""Conditional whitening: each field of a row as its standardized residual, given the fields before it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from o2o_diffusion.networks.regression import Regression
from o2o_diffusion.types import TransitionSpec

CHAIN = {
    "actions": ("label", "observations"),
    "next_observations": ("label", "observations", "actions"),
    "rewards": ("label", "observations", "actions", "next_observations", "terminations"),
}
"""The whitened fields in the order in which they are restored, and the fields they are predicted from.

`label` is -1 for offline rows, 1 for online ones, 0 if the labels are not kept apart.
"""
DEPTH = 3
"""Hidden layers of a regression."""
MAX = 12.0
"""Largest compressed residual: 80,000 standard deviations. Rows are limited to the range of real ones after it."""

Fields = Mapping[str, Tensor]


class Whitening(nn.Module):
    """Residuals of a|s, s'-s|s,a and r|s,a,s' under small regressions, with their tails compressed (asinh).

    A denoiser's error is a share of the variance of its columns. After whitening, that variance is the part of an entry
    that the others don't determine, so that actions fit their states and outcomes their actions as closely as the real
    ones do. It is a change of coordinates that can be inverted whatever the fit. The whole row is drawn from the
    denoiser, so that dependence that the regressions miss is still modeled.
    """

    def __init__(self, spec: TransitionSpec, *, width: int):
        super().__init__()
        widths = {name: where.stop - where.start for name, where in spec.columns.items()} | {"label": 1}
        self.regressions = nn.ModuleDict(
            {
                name: Regression(sum(widths[part] for part in given), widths[name], hidden=[width] * DEPTH)
                for name, given in CHAIN.items()
            }
        )

        for name in CHAIN:  # before training, coordinates are standardized columns
            nn.init.zeros_(self._regression(name).output.weight)

    def forward(self, name: str, fields: Fields, target: Tensor) -> Tensor:
        """[B, width] residuals of `target`, the field `name` of the rows with `fields`."""
        return self._regression(name).standardize(_given(name, fields), target).asinh()

    def invert(self, name: str, fields: Fields, residuals: Tensor, *, noise: float = 1.0) -> Tensor:
        """[B, width] the field `name` of rows with the `fields` before it; the inverse of `forward` for `noise` 1."""
        return self._regression(name).invert(_given(name, fields), noise * residuals.clamp(-MAX, MAX).sinh())

    def loss(self, fields: Fields, targets: Fields) -> Tensor:
        """[] sum of the regressions' losses."""
        losses = [self._regression(name).loss(_given(name, fields), targets[name]) for name in CHAIN]
        return torch.stack(losses).sum()

    def fit_normalizers(self, fields: Fields, targets: Fields) -> None:
        """Set the statistics of the regressions' inputs and targets."""
        for name in CHAIN:
            self._regression(name).fit_normalizers(_given(name, fields), targets[name])

    def _regression(self, name: str) -> Regression:
        return self.regressions[name]  # pyright: ignore[reportReturnType]


def _given(name: str, fields: Fields) -> Tensor:
    """[B, sum of widths] the fields that `name` is predicted from."""
    return torch.cat([fields[part] for part in CHAIN[name]], dim=1)
