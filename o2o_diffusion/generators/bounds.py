"""The exact limits of each column: its range, the values that rows pile up at, and columns with few values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_VALUES = 8
"""Columns with at most this many distinct values are discrete: generated entries are snapped to them."""
MIN_TIES = 3
"""Rows with the least or the greatest value of a column, from which on it is a bound (a clipped action or velocity)."""
PUSH = 0.5
"""Distance, in standard deviations of the column, by which values at a bound are moved outward for training."""


class Bounds(nn.Module):
    """Range and values of the columns of rows [B, D]; ranges, [3, D], are of the offline, the online and all rows.

    A column that is clipped has rows exactly at its bound. A continuous model would spread them around it; moved
    outward before training, they are a separate mode, and clamping to the exact range of the data restores them.
    """

    low: Tensor
    high: Tensor
    push_low: Tensor
    push_high: Tensor
    values: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("low", torch.full((3, dim), -torch.inf))
        self.register_buffer("high", torch.full((3, dim), torch.inf))
        self.register_buffer("push_low", torch.zeros(dim))
        self.register_buffer("push_high", torch.zeros(dim))
        self.register_buffer("values", torch.full((dim, MAX_VALUES), torch.nan))  # ascending, padded with NaN

    def fit(self, pools: Sequence[Tensor], *, push: bool = True) -> None:
        """Set the limits to those of the offline and the online rows in `pools`; a label without rows has those of all.

        With `push`, ties at the least and the greatest value of all rows are bounds.
        """
        rows = torch.cat(list(pools))
        low, high = rows.aminmax(dim=0)
        for label, pool in enumerate((*pools, rows)):
            self.low[label], self.high[label] = pool.aminmax(dim=0) if len(pool) else (low, high)
        self.values.copy_(torch.stack([_few(values) for values in rows.T]))
        amount = PUSH * rows.std(0, correction=0) * float(push) * self.values.isnan().all(1)
        for side, bound in ((self.push_low, low), (self.push_high, high)):
            side.copy_(amount * ((rows == bound).sum(0) >= MIN_TIES))

    def outward(self, rows: Tensor) -> Tensor:
        """Move entries at a bound outward."""
        is_low, is_high = rows == self.low[-1], rows == self.high[-1]
        return rows - self.push_low * is_low + self.push_high * is_high

    def inside(self, field: Tensor, column: slice, label: int) -> Tensor:
        """Entries `field` [B, width] of the columns `column`: within the range of `label`, one of a few values."""
        field = field.clamp(self.low[label, column], self.high[label, column])
        for k, values in enumerate(self.values[column]):
            if not values.isnan().all():
                values = values[~values.isnan()]
                field[:, k] = values[(field[:, k, None] - values).abs().argmin(1)]
        return field


def _few(values: Tensor) -> Tensor:
    """[MAX_VALUES] distinct `values` [N] if they are few, padded with NaN; only NaN otherwise."""
    found = torch.full((MAX_VALUES,), torch.nan, device=values.device)
    if len(values[:4096].unique()) <= MAX_VALUES and len(distinct := values.unique()) <= MAX_VALUES:
        found[: len(distinct)] = distinct
    return found
