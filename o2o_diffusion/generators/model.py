"""The saved model of a generator: network, normalizer, column layout and limits, in diffusers' folder format."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import precondition
from o2o_diffusion.diffusion.sampling import NoiseLevels
from o2o_diffusion.networks.residual_mlp import LabelEmbedding, ResidualMLP, ScoreEmbedding
from o2o_diffusion.replay import Pool
from o2o_diffusion.types import TransitionSpec

LABELS = ("offline", "online")
MAX_REWARD_VALUES = 8
"""Rewards with at most this many distinct values are sparse: generated rewards are snapped to them."""


class TransitionDenoiser(ModelMixin, ConfigMixin):
    """Denoises normalized flat rows [s, a, r, s', termination]; config and buffers hold everything sampling needs.

    With `differences` the model uses s' - s instead of s': one step changes little, and errors are then measured
    relative to that change. `columns` lists the fields in order, with their widths. `condition` is the condition of
    rows: none, a label (index in `LABELS`), or a score in [-1, 1]; `null` means no condition.

    Buffers, per column: mean and std of the normalizer (0 and 1 for terminations, which are not normalized), low and
    high limits of generated rows. `reward_values` holds the distinct rewards if they are few, padded with NaN;
    `pool_rows` the numbers of offline and online rows at the last fit.
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

    @property
    def levels(self) -> NoiseLevels:
        """The training noise levels."""
        return NoiseLevels(self.sigma_min, self.sigma_max, self.rho, self.sigma_data)

    @classmethod
    def create(cls, spec: TransitionSpec, **settings: Any) -> "TransitionDenoiser":
        """A new model for the rows of `spec`; `settings` are passed to the constructor."""
        return cls(spec.observation_dim, spec.action_dim, layout(spec), **settings)

    @property
    def spec(self) -> TransitionSpec:
        """The dimensions of the model's rows."""
        return TransitionSpec(self.config["observation_dim"], self.config["action_dim"])

    def forward(self, x: Tensor, sigma: Tensor, *condition: Tensor) -> Tensor:
        """[B, row_dim] expected clean rows for normalized `x` with noise `sigma` (scalar or [B, 1])."""
        return precondition(self.network, self.sigma_data)(x, sigma, *condition)

    def normalize(self, rows: Tensor) -> Tensor:
        """Normalize raw rows to zero mean and unit standard deviation per column."""
        return (self._to_deltas(rows) - self.mean) / self.std

    @torch.no_grad()
    def fit(self, pools: Sequence[Pool], shares: Sequence[float], *, margin: float = 0.05) -> None:
        """Fit normalizer and limits to the offline and the online pool, weighted by `shares`, which sum to 1.

        Standard deviations are at least 1e-3. Limits are the observed range plus `margin` of it at either end; for
        actions, [-1, 1].
        """
        self.pool_rows.copy_(torch.tensor([len(pool) for pool in pools]))
        used = [(pool, share) for pool, share in zip(pools, shares, strict=True) if share > 0]
        held, weights = [pool.all() for pool, _ in used], [share for _, share in used]
        for name, where in self.spec.columns.items():
            fields = [getattr(pool, name).reshape(len(pool), -1) for pool in held]
            self.low[where], self.high[where] = observed_range(fields, margin)
            if name == "next_observations" and self.config["differences"]:
                fields = [f - pool.observations for f, pool in zip(fields, held, strict=True)]
            self.mean[where], self.std[where] = weighted_moments(fields, weights)
        columns = self.spec.columns
        actions = columns["actions"]
        varies = self.low[actions] < self.high[actions]  # a constant column keeps its value
        self.low[actions] = torch.where(varies, -1.0, self.low[actions])
        self.high[actions] = torch.where(varies, 1.0, self.high[actions])
        self.mean[columns["terminations"]], self.std[columns["terminations"]] = 0.0, 1.0
        values = torch.cat([pool.rewards for pool in held]).unique()
        self.reward_values.fill_(torch.nan)
        if len(values) <= MAX_REWARD_VALUES:
            self.reward_values[: len(values)] = values

    def postprocess(self, x: Tensor) -> Tensor:
        """Convert normalized `x` to raw rows within the limits; non-finite rows are dropped, so there may be fewer.

        Terminations become 0 or 1 (threshold 0.5), sparse rewards the nearest observed value.
        """
        rows = self._from_deltas(x * self.std + self.mean)
        rows = rows[rows.isfinite().all(1)]
        terminations, rewards = self.spec.columns["terminations"], self.spec.columns["rewards"]
        rows = rows.clamp(self.low, self.high)
        rows[:, terminations] = (rows[:, terminations] > 0.5).float()
        values = self.reward_values[self.reward_values.isfinite()]
        if len(values):
            rows[:, rewards] = values[(rows[:, rewards] - values).abs().argmin(1)][:, None]
        return rows

    def _to_deltas(self, rows: Tensor) -> Tensor:
        """Rows with s' - s instead of s' if `differences`."""
        return self._shifted(rows, -1)

    def _from_deltas(self, rows: Tensor) -> Tensor:
        """The inverse of `_to_deltas`."""
        return self._shifted(rows, 1)

    def _shifted(self, rows: Tensor, sign: int) -> Tensor:
        if not self.config["differences"]:
            return rows
        columns, rows = self.spec.columns, rows.clone()
        rows[:, columns["next_observations"]] += sign * rows[:, columns["observations"]]
        return rows


def layout(spec: TransitionSpec) -> list[tuple[str, int]]:
    """The columns of a flat row of `spec`: names and widths, in order."""
    return [(name, where.stop - where.start) for name, where in spec.columns.items()]


def observed_range(fields: Sequence[Tensor], margin: float) -> tuple[Tensor, Tensor]:
    """[D] minimum and maximum of `fields` ([N_i, D] each), extended by `margin` of the range."""
    low = torch.stack([field.amin(0) for field in fields]).amin(0)
    high = torch.stack([field.amax(0) for field in fields]).amax(0)
    return low - margin * (high - low), high + margin * (high - low)


def weighted_moments(fields: Sequence[Tensor], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """[D] mean and standard deviation (at least 1e-3) of `fields` ([N_i, D] each), weighted by `weights`."""
    mean = sum(weight * field.mean(0) for field, weight in zip(fields, weights, strict=True))
    squares = [(field - mean).square().mean(0) for field in fields]
    variance = sum(weight * square for square, weight in zip(squares, weights, strict=True))
    return torch.as_tensor(mean), torch.as_tensor(variance).sqrt().clamp(min=1e-3)
