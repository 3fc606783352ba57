"""What a diffusion generator saves: network, normaliser, column layout and limits, in diffusers' folder format."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import precondition
from o2o_diffusion.networks.residual_mlp import LabelEmbedding, ResidualMLP, ScoreEmbedding
from o2o_diffusion.replay import Pool
from o2o_diffusion.types import TransitionSpec

LABELS = ("offline", "online")
MAX_REWARD_VALUES = 8
"""Rewards with at most so many distinct values are sparse: generated ones are snapped to them (a default of ours)."""


class TransitionDenoiser(ModelMixin, ConfigMixin):
    """Denoises normalised flat rows [s, a, r, s', termination]; config and buffers hold all that sampling needs.

    With `differences` the model sees s' - s in place of s': one step changes little, and errors are then measured by
    that change. `columns` names the fields in order, with their widths. `condition` is what rows are conditioned on:
    nothing, a label (index in `LABELS`), or a score in [-1, 1]; `null` stands for no condition.

    Buffers, by column: mean and std of the normaliser (terminations 0 and 1: not normalised), low and high of what may
    be generated. `reward_values` holds the distinct rewards where they are few, NaN elsewhere; `pool_rows` the offline
    and online rows that there were at the last fit.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    reward_values: Tensor
    pool_rows: Tensor

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        columns: Sequence[tuple[str, int]],
        condition: Literal["none", "label", "score"] = "label",
        width: int = 256,
        depth: int = 4,
        embedding_dim: int = 128,
        differences: bool = True,
        sigma_data: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ):
        super().__init__()
        dim = sum(width for _, width in columns)
        embedding = {
            "none": lambda: None,
            "label": lambda: LabelEmbedding(len(LABELS), embedding_dim),
            "score": lambda: ScoreEmbedding(embedding_dim),
        }[condition]()
        self.null = embedding.null if embedding is not None else float("nan")
        self.network = ResidualMLP(dim, width=width, depth=depth, embedding_dim=embedding_dim, condition=embedding)
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, sigma_min, sigma_max, rho
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("low", torch.full((dim,), -torch.inf))
        self.register_buffer("high", torch.full((dim,), torch.inf))
        self.register_buffer("reward_values", torch.full((MAX_REWARD_VALUES,), torch.nan))
        self.register_buffer("pool_rows", torch.zeros(len(LABELS), dtype=torch.int64))

    @classmethod
    def create(cls, spec: TransitionSpec, **settings: Any) -> "TransitionDenoiser":
        """A new model for the rows of `spec`; `settings` are those of the constructor."""
        return cls(spec.observation_dim, spec.action_dim, layout(spec), **settings)

    @property
    def spec(self) -> TransitionSpec:
        """The dimensions that the model was made for."""
        return TransitionSpec(self.config["observation_dim"], self.config["action_dim"])

    def forward(self, x: Tensor, sigma: Tensor, *condition: Tensor) -> Tensor:
        """[B, row_dim] expected clean rows of normalised `x` with noise `sigma` (scalar or [B, 1])."""
        return precondition(self.network, self.sigma_data)(x, sigma, *condition)

    def normalize(self, rows: Tensor) -> Tensor:
        """Raw rows with zero mean and unit standard deviation per column."""
        return (self._change(rows, -1) - self.mean) / self.std

    @torch.no_grad()
    def fit(self, pools: Sequence[Pool], shares: Sequence[float], *, margin: float = 0.05) -> None:
        """Fit normaliser and limits to the offline and the online pool, which weigh as `shares`; they sum to 1.

        Standard deviations are at least 1e-3. Limits are the observed range and `margin` of it at either end; actions
        lie in [-1, 1].
        """
        self.pool_rows.copy_(torch.tensor([len(pool) for pool in pools]))
        used = [(pool, share) for pool, share in zip(pools, shares, strict=True) if share > 0]
        held, weights = [pool for pool, _ in used], [share for _, share in used]
        for name, where in self.spec.columns.items():
            fields = [pool.fields[name][: len(pool)].reshape(len(pool), -1) for pool in held]
            self.low[where], self.high[where] = observed_range(fields, margin)
            if name == "next_observations" and self.config["differences"]:
                fields = [f - pool.fields["observations"][: len(pool)] for f, pool in zip(fields, held, strict=True)]
            self.mean[where], self.std[where] = weighted_moments(fields, weights)
        columns = self.spec.columns
        actions = columns["actions"]
        varies = self.low[actions] < self.high[actions]  # a constant column is repeated as it is
        self.low[actions] = torch.where(varies, -1.0, self.low[actions])
        self.high[actions] = torch.where(varies, 1.0, self.high[actions])
        self.mean[columns["terminations"]], self.std[columns["terminations"]] = 0.0, 1.0
        values = torch.cat([pool.fields["rewards"][: len(pool)] for pool in held]).unique()
        self.reward_values.fill_(torch.nan)
        if len(values) <= MAX_REWARD_VALUES:
            self.reward_values[: len(values)] = values

    def postprocess(self, x: Tensor) -> Tensor:
        """Raw rows of normalised `x`, made valid: finite only (so there may be fewer) and within the limits.

        Terminations become 0 or 1 (threshold 0.5), sparse rewards the nearest value seen.
        """
        rows = self._change(x * self.std + self.mean, 1)
        rows = rows[rows.isfinite().all(1)]
        terminations, rewards = self.spec.columns["terminations"], self.spec.columns["rewards"]
        rows = rows.clamp(self.low, self.high)
        rows[:, terminations] = (rows[:, terminations] > 0.5).float()
        values = self.reward_values[self.reward_values.isfinite()]
        if len(values):
            rows[:, rewards] = values[(rows[:, rewards] - values).abs().argmin(1)][:, None]
        return rows

    def _change(self, rows: Tensor, sign: int) -> Tensor:
        """Rows with next observations as differences to observations (sign -1), or back (1)."""
        if not self.config["differences"]:
            return rows
        columns, rows = self.spec.columns, rows.clone()
        rows[:, columns["next_observations"]] += sign * rows[:, columns["observations"]]
        return rows


def layout(spec: TransitionSpec) -> list[tuple[str, int]]:
    """The columns of a flat row of `spec`: names and widths, in order."""
    return [(name, where.stop - where.start) for name, where in spec.columns.items()]


def observed_range(fields: Sequence[Tensor], margin: float) -> tuple[Tensor, Tensor]:
    """[D] lowest and highest entries of `fields` ([N_i, D] each), and `margin` of the range beyond."""
    low = torch.stack([field.amin(0) for field in fields]).amin(0)
    high = torch.stack([field.amax(0) for field in fields]).amax(0)
    return low - margin * (high - low), high + margin * (high - low)


def weighted_moments(fields: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """[D] mean and standard deviation (at least 1e-3) of `fields` ([N_i, D] each), which weigh as `weights` in all."""
    mean = sum(weight * field.mean(0) for field, weight in zip(fields, weights, strict=True))
    squares = [(field - mean).square().mean(0) for field in fields]
    variance = sum(weight * square for square, weight in zip(squares, weights, strict=True))
    return torch.as_tensor(mean), torch.as_tensor(variance).sqrt().clamp(min=1e-3)
