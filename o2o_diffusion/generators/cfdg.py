"""Classifier-free diffusion generation, CFDG (ICML 2025), https://arxiv.org/abs/2508.06806.

One diffusion model of transitions, conditioned on the source of a row: offline or online. Sampling with the online
label, guided away from what both sources have in common, gives rows aligned with the current policy's data.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from o2o_diffusion.diffusion.guidance import classifier_free
from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.training import drop_conditions
from o2o_diffusion.generators.base import DiffusionGenerator, ramped
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare
from o2o_diffusion.types import Source, Transitions


class CFDG(DiffusionGenerator):
    """SynthER's transition model with labels and guidance.

    Not in the paper: label dropout, guidance scale, whether terminations are modeled, the initial weights of a refresh,
    and the rows per refresh at small budgets. The guidance scale is the best of those measured (docs/generators.md).
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """`cfdg-paper.yaml` holds the paper's sizes."""

        share: Annotated[float, "share of generated rows in a batch", Interval(ge=0, le=1)] = 1 / 3
        online_share: Annotated[float, "share of generated rows with the online label", Interval(ge=0, le=1)] = 0.8
        training_share: Annotated[float, "share of online rows in a training batch", Interval(ge=0, le=1)] = 0.5
        label_dropout: Annotated[float, "fraction of training rows with the label dropped", Interval(ge=0, le=1)] = 0.25
        guidance: Annotated[float, "w in (1 + w) D(x, label) - w D(x, none)", Ge(-1)] = 0.5
        guidance_ramp: Annotated[int, "online rows at which guidance reaches full scale; 0: immediately", Ge(0)] = (
            10_000
        )

    config: Config
    condition = "label"

    def share(self, replay: Replay) -> GeneratedShare:
        """`share` of the settings, split by label with `online_share`."""
        return GeneratedShare(share=self.config.share, online=self.config.online_share)

    def training_mix(self, replay: Replay) -> tuple[float, float]:
        """Shares by `training_share`, or all rows from one pool if the other is empty."""
        online = self.config.training_share if len(replay.offline) else 1.0
        return (1.0 - online, online) if len(replay.online) else (1.0, 0.0)

    def conditions(self, batch: Transitions) -> Tensor:
        """Labels of real rows, with label dropout."""
        dropped = self.rng.uniform(len(batch))
        return drop_conditions(batch.sources, dropped, null=self.model.null, probability=self.config.label_dropout)

    def denoiser(self, size: int, source: Source, replay: Replay, agent: Agent) -> Denoiser:
        """The model guided toward the label of `source`, more strongly with more online rows in the last fit.

        A label without rows in the last fit is replaced by the null label, without guidance.
        """
        label, null = int(source.real), self.model.null
        rows = self.model.pool_rows.tolist()
        scale = ramped(self.config.guidance, rows[1], self.config.guidance_ramp) if rows[label] else 0.0
        condition = torch.full((size,), label if rows[label] else int(null), device=self.device)
        return classifier_free(self.model, condition=condition, null=null, scale=scale)
