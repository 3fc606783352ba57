"""Prioritized generative replay, PGR (Wang et al., 2025), https://arxiv.org/abs/2410.18082.

A diffusion model of transitions conditioned on a relevance score: how curious, how surprising to the critic, or how
rewarding a transition is. New rows are drawn at the scores of the most relevant real ones.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from o2o_diffusion.agents import td_errors
from o2o_diffusion.diffusion.guidance import classifier_free
from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.training import drop_conditions
from o2o_diffusion.distributed import num_processes
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.base import DiffusionGenerator, proportional
from o2o_diffusion.networks.curiosity import Curiosity
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Metrics, Source, Transitions

SCORED_AT_A_TIME = 8_192


def known_returns(batch: Transitions) -> Tensor:
    """[B] returns, NaN where unknown."""
    return torch.where(batch.returns.isfinite(), batch.returns, torch.nan)


def scaled(scores: Tensor) -> Tensor:
    """[N] scores with the lowest at -1 and the highest at 1; NaN stays NaN."""
    known = scores[~scores.isnan()]
    if not len(known):
        return scores
    low, high = known.aminmax()
    return 2 * (scores - low) / (high - low).clamp(min=1e-12) - 1


class TopScores(nn.Module):
    """What new rows are conditioned on: quantiles of the highest scores of real rows, or NaN: no score."""

    quantiles: Tensor

    def __init__(self, num_quantiles: int = 256):
        super().__init__()
        self.register_buffer("quantiles", torch.full((num_quantiles,), torch.nan))

    def fit(self, scores: Tensor, share: float) -> None:
        """Take the highest `share` of `scores` [N], those that are NaN left out."""
        known = scores[~scores.isnan()].sort().values
        if not len(known):
            self.quantiles.fill_(torch.nan)
            return
        levels = torch.linspace(1 - share, 1, len(self.quantiles), device=scores.device)
        self.quantiles.copy_(known[(levels * (len(known) - 1)).round().long()])

    def forward(self, uniform: Tensor) -> Tensor:
        """[B] scores, resampled by `uniform` numbers in [0, 1)."""
        return self.quantiles[(uniform * len(self.quantiles)).long()]


class PGR(DiffusionGenerator):
    """SynthER's transition model with a score and guidance.

    A refresh first trains the curiosity module, on all real rows alike, then scores the rows that the denoiser trains
    on, once. Curiosity stays warm between refreshes. Rows without a score (an episode that has not ended has no
    returns) train the denoiser unconditionally. Guidance acts on every evaluation of the solver.
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """Dropout, guidance and the share of top scores are the paper's; the sizes are for a CPU."""

        relevance: Annotated[Literal["curiosity", "td_error", "return"], "what a row's score is"] = "curiosity"
        rows: Annotated[Literal["online", "all"], "real rows to train on"] = "online"
        top_share: Annotated[float, "share of real rows whose scores new rows are drawn at"] = 0.25
        score_dropout: Annotated[float, "share of training rows without their score"] = 0.25
        guidance: Annotated[float, "w of (1 + w) D(x, score) - w D(x, none); the paper's s is 1 + w"] = 1.0
        curiosity_updates: Annotated[int, "optimiser steps of the curiosity module at each refresh"] = 500
        curiosity_learning_rate: Annotated[float, "of the curiosity module, constant"] = 3e-4

    config: Config
    condition = "score"
    parts = ("top_scores",)
    counters = (*DiffusionGenerator.counters, "curiosity_left", "curiosity_loss")

    def build(self) -> None:
        """The highest scores, and curiosity where scores come from it."""
        if not 0 < self.config.top_share <= 1:
            share = self.config.top_share
            raise InputError(f"setting 'generator.top_share': {share}, expected more than 0 and at most 1")
        self.top_scores = TopScores().to(self.device)
        self.scores: Tensor | None = None  # of the rows trained on, offline before online; made anew after a restart
        self.metrics: Metrics = {}
        self.curiosity_left, self.curiosity_loss = 0, torch.zeros(())
        if self.config.relevance == "curiosity":
            self.curiosity = Curiosity(self.spec.observation_dim, self.spec.action_dim).to(self.device)
            self.curiosity_optimizer = Optimizer(self.curiosity.parameters(), self.config.curiosity_learning_rate)

    @property
    def num_updates(self) -> int:
        """Optimiser steps of curiosity and denoiser together."""
        curiosity = self.config.curiosity_updates if self.config.relevance == "curiosity" else 0
        return curiosity + self.denoiser_updates

    def shares(self, replay: Replay) -> tuple[float, float]:
        """Online rows only, or the union."""
        return (0.0, 1.0) if self.config.rows == "online" and len(replay.online) else proportional(replay)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """As the base; the normaliser of observations that curiosity was first trained with is kept."""
        if self.config.relevance == "td_error":
            _ = agent.values  # what stands in for a missing policy says so
        super().begin_refresh(replay, agent)
        self.scores, self.curiosity_left = None, self.num_updates - self.denoiser_updates
        if self.curiosity_left and self.num_refreshes == 0:
            observations = [pool.fields["observations"][: len(pool)] for pool in (replay.offline, replay.online)]
            self.curiosity.normalizer.fit(torch.cat(observations))

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """One optimiser step of the curiosity module, or of the denoiser when those are done."""
        with torch.autocast(self.device.type, enabled=False):  # scores are small differences of features
            if self.curiosity_left > 0:
                return self.update_curiosity(replay)
            if self.scores is None:
                self.score(replay, agent)
        return super().update(replay, agent) | self.metrics

    def update_curiosity(self, replay: Replay) -> Metrics:
        """One step on this process's part of a batch in which every real row is as likely as any other."""
        num_offline, size = len(replay.offline), self.config.batch_size // num_processes()
        rows = (self.row_noise.uniform(size).double() * (num_offline + len(replay.online))).long().to(self.device)
        online = (rows >= num_offline).long()
        batch = replay.gather(rows - num_offline * online, online)
        loss = self.curiosity.loss(batch.observations, batch.actions, batch.next_observations)
        self.curiosity_loss = self.curiosity_optimizer.step(loss)
        self.curiosity_left -= 1
        return {"curiosity_loss": self.curiosity_loss}

    @torch.no_grad()
    def score(self, replay: Replay, agent: Agent) -> None:
        """Score every row that the denoiser trains on; the metric `score` is their mean before scaling."""
        pools = zip((replay.offline, replay.online), self.shares(replay), strict=True)
        scores = torch.cat(
            [
                self.relevance(pool[rows], replay, agent)
                for pool, share in pools
                if share > 0
                for rows in torch.arange(len(pool), device=self.device).split(SCORED_AT_A_TIME)
            ]
        )
        self.scores = scaled(scores)
        self.top_scores.fit(self.scores, self.config.top_share)
        known = scores[~scores.isnan()]
        self.metrics = {"score": known.mean()} if len(known) else {}
        if self.config.relevance == "curiosity":
            self.metrics["curiosity_loss"] = self.curiosity_loss

    def relevance(self, batch: Transitions, replay: Replay, agent: Agent) -> Tensor:
        """[B] raw scores of real rows, NaN where there is none."""
        if self.config.relevance == "curiosity":
            return self.curiosity(batch.observations, batch.actions, batch.next_observations)
        return td_errors(agent, batch, replay) if self.config.relevance == "td_error" else known_returns(batch)

    def conditions(self, batch: Transitions) -> Tensor:
        """Scores of real rows, some of them dropped."""
        assert self.scores is not None
        offset = len(self.scores) - self.model.pool_rows[1]  # of the online rows, which come last
        scores = self.scores[batch.rows + offset * (batch.sources == Source.ONLINE)]
        dropped = self.noise.uniform(len(batch))
        return drop_conditions(scores, dropped, null=self.model.null, probability=self.config.score_dropout)

    def denoiser(self, size: int, source: Source, replay: Replay | None, agent: Agent | None) -> Denoiser:
        """Guided towards scores resampled from the highest ones of real rows."""
        condition = self.top_scores(self.noise.uniform(size))
        return classifier_free(self.model, condition=condition, null=self.model.null, scale=self.config.guidance)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; scores follow from it."""
        super().load_state_dict(state)
        self.scores = None
