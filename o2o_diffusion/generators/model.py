"""The saved model of a generator: network and layout of its columns, in diffusers' folder format."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import precondition
from o2o_diffusion.diffusion.sampling import NoiseLevels
from o2o_diffusion.generators.layout import Layout
from o2o_diffusion.networks.residual_mlp import LabelEmbedding, ResidualMLP, ScoreEmbedding
from o2o_diffusion.replay import Pool
from o2o_diffusion.types import TransitionSpec

LABELS = ("offline", "online")


class TransitionDenoiser(ModelMixin, ConfigMixin):
    """Denoises the coordinates of flat rows [s, a, r, s', termination]; config and buffers hold what sampling needs.

    `columns` lists the fields in order, with their widths. `condition` is the condition of rows: none, a label (index
    in `LABELS`), or a score in [-1, 1]; `null` means no condition. For the other settings of rows, see `Layout`. The
    buffer `pool_rows` has the numbers of offline and online rows at the last fit.
    """

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
        bounds: bool = True,
        surfaces: bool = True,
        labels: bool = True,
        outcome_noise: float = 0.0,
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
        spec = TransitionSpec(observation_dim, action_dim)
        parts = {"differences": differences, "bounds": bounds, "surfaces": surfaces, "labels": labels}
        labeled = condition == "label"
        self.layout = Layout(spec, width=width, labeled=labeled, outcome_noise=outcome_noise, **parts)
        self.register_buffer("pool_rows", torch.zeros(len(LABELS), dtype=torch.int64))

    @property
    def levels(self) -> NoiseLevels:
        """The training noise levels."""
        return NoiseLevels(self.sigma_min, self.sigma_max, self.rho, self.sigma_data)

    @classmethod
    def create(cls, spec: TransitionSpec, **settings: Any) -> "TransitionDenoiser":
        """A new model for the rows of `spec`; `settings` are passed to the constructor."""
        return cls(spec.observation_dim, spec.action_dim, columns_of(spec), **settings)

    @property
    def spec(self) -> TransitionSpec:
        """The dimensions of the model's rows."""
        return TransitionSpec(self.config["observation_dim"], self.config["action_dim"])

    def forward(self, x: Tensor, sigma: Tensor, *condition: Tensor) -> Tensor:
        """[B, row_dim] expected clean coordinates for `x` with noise `sigma` (scalar or [B, 1])."""
        return precondition(self.network, self.sigma_data)(x, sigma, *condition)

    def fit(self, pools: Sequence[Pool], shares: Sequence[float], *, is_warm: bool = False) -> None:
        """Fit the layout to the offline and the online pool, weighted by `shares`, which sum to 1; see `Layout.fit`."""
        self.pool_rows.copy_(torch.tensor([len(pool) for pool in pools]))
        self.layout.fit(pools, shares, is_warm=is_warm)


def columns_of(spec: TransitionSpec) -> list[tuple[str, int]]:
    """The columns of a flat row of `spec`: names and widths, in order."""
    return [(name, where.stop - where.start) for name, where in spec.columns.items()]
