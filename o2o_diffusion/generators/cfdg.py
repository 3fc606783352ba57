"""Classifier-free diffusion generation, CFDG (ICML 2025), https://arxiv.org/abs/2508.06806.

One diffusion model of transitions, conditioned on where a row comes from: offline or online. Sampling with the online
label, guided away from what both have in common, gives rows aligned with what the policy meets now.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from o2o_diffusion.diffusion.guidance import classifier_free
from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.training import drop_conditions
from o2o_diffusion.generators.base import DiffusionGenerator, ramped
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare
from o2o_diffusion.types import Source, Transitions

LABELS = {Source.GENERATED_OFFLINE: 0, Source.GENERATED_ONLINE: 1}


class CFDG(DiffusionGenerator):
    """SynthER's transition model with labels and guidance.

    The paper does not state label dropout, guidance scale, whether terminations are modelled, what a refresh starts
    from, or the rows drawn per refresh at small budgets: those defaults are ours. The scale is
    the best of those measured (docs/generators.md).
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """`cfdg-paper.yaml` holds the paper's sizes."""

        share: Annotated[float, "share of generated rows in a batch"] = 1 / 3
        online_share: Annotated[float, "share of the generated rows that carry the online label"] = 0.8
        training_share: Annotated[float, "share of online rows in a training batch"] = 0.5
        label_dropout: Annotated[float, "share of training rows without their label"] = 0.25
        guidance: Annotated[float, "w of (1 + w) D(x, label) - w D(x, none)"] = 0.5
        guidance_ramp: Annotated[int, "online rows at which guidance reaches its full scale; 0: at once"] = 10_000

    config: Config
    condition = "label"

    def wanted(self) -> GeneratedShare:
        """Rows of both labels."""
        return GeneratedShare(share=self.config.share, online=self.config.online_share)

    def shares(self, replay: Replay) -> tuple[float, float]:
        """Both labels, or all of one while the other pool is empty."""
        online = self.config.training_share if len(replay.offline) else 1.0
        return (1.0 - online, online) if len(replay.online) else (1.0, 0.0)

    def conditions(self, batch: Transitions) -> Tensor:
        """Labels of real rows, some of them dropped."""
        dropped = self.noise.uniform(len(batch))
        return drop_conditions(batch.sources, dropped, null=self.model.null, probability=self.config.label_dropout)

    def denoiser(self, size: int, source: Source, replay: Replay | None, agent: Agent | None) -> Denoiser:
        """Guided towards `source`, the more so the more online rows the last fit had.

        A label that no row carried in the last fit is replaced by the null label, without guidance.
        """
        label, null = LABELS[source], self.model.null
        rows = self.model.pool_rows.tolist()
        scale = ramped(self.config.guidance, rows[1], self.config.guidance_ramp) if rows[label] else 0.0
        condition = torch.full((size,), label if rows[label] else int(null), device=self.device)
        return classifier_free(self.model, condition=condition, null=null, scale=scale)
