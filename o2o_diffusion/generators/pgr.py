"""Prioritized generative replay, PGR (Wang et al., 2025), https://arxiv.org/abs/2410.18082.

A diffusion model of transitions conditioned on a relevance score: curiosity, TD error or return. New rows are sampled
at the scores of the most relevant real rows.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from o2o_diffusion.agents import require_agent, td_errors
from o2o_diffusion.diffusion.guidance import classifier_free
from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.training import drop_conditions
from o2o_diffusion.generators.base import DiffusionGenerator, proportional
from o2o_diffusion.networks.curiosity import Curiosity
from o2o_diffusion.optimization import Optimizer, batch_part
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Metrics, Source, Transitions

SCORED_AT_A_TIME = 8_192


def known_returns(batch: Transitions) -> Tensor:
    """[B] returns, NaN where unknown."""
    return torch.where(batch.returns.isfinite(), batch.returns, torch.nan)


def scaled(scores: Tensor) -> Tensor:
    """Ranks of `scores` [N] from -1 (least) to 1 (greatest), equal for equal scores; NaN stays NaN.

    Not min-max, which squeezes all but a few rows of heavy-tailed scores, such as curiosity, into one value.
    """
    ordered = scores[~scores.isnan()].sort().values
    ranks = torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True) - 1  # twice the rank
    ranks = ranks / max(len(ordered) - 1, 1) - 1
    return torch.where(scores.isnan(), torch.nan, ranks)


class TopScores(nn.Module):
    """Conditions of new rows: quantiles of the highest scores of real rows, or NaN if there are no scores."""

    quantiles: Tensor

    def __init__(self, num_quantiles: int = 256):
        super().__init__()
        self.register_buffer("quantiles", torch.full((num_quantiles,), torch.nan))

    def fit(self, scores: Tensor, share: float) -> None:
        """Store quantiles of the highest `share` of `scores` [N], ignoring NaN."""
        known = scores[~scores.isnan()].sort().values
        if not len(known):
            self.quantiles.fill_(torch.nan)
            return
        levels = torch.linspace(1 - share, 1, len(self.quantiles), device=scores.device)
        self.quantiles.copy_(known[(levels * (len(known) - 1)).round().long()])

    def forward(self, uniform: Tensor) -> Tensor:
        """[B] scores, resampled with `uniform` draws in [0, 1)."""
        return self.quantiles[(uniform * len(self.quantiles)).long()]


class PGR(DiffusionGenerator):
    """SynthER's transition model with scores and guidance.

    A refresh first trains the curiosity module, uniformly on all real rows, then scores the denoiser's training rows
    once. Curiosity keeps its weights between refreshes. Rows without a score (unfinished episodes have no returns)
    train the denoiser unconditionally. Guidance applies to every evaluation of the solver.
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """Dropout, guidance and the share of top scores are the paper's; the sizes are for a CPU."""

        relevance: Annotated[Literal["curiosity", "td_error", "return"], "score of a row"] = "curiosity"
        rows: Annotated[Literal["online", "all"], "real rows to train on"] = "online"
        top_share: Annotated[float, "top fraction of real scores used to condition new rows", Interval(gt=0, le=1)] = (
            0.25
        )
        score_dropout: Annotated[float, "fraction of training rows with the score dropped", Interval(ge=0, le=1)] = 0.25
        guidance: Annotated[float, "w in (1 + w) D(x, score) - w D(x, none); the paper's s is 1 + w", Ge(-1)] = 1.0
        curiosity_updates: Annotated[int, "optimizer steps of the curiosity module per refresh", Ge(0)] = 500
        curiosity_learning_rate: Annotated[float, "learning rate of the curiosity module, constant", Gt(0)] = 3e-4

    config: Config
    condition = "score"
    parts = ("top_scores",)
    state_fields = (*DiffusionGenerator.state_fields, "curiosity_left", "curiosity_loss")

    def build(self) -> None:
        """Create the top scores and, if `relevance` needs it, the curiosity module."""
        self.top_scores = TopScores().to(self.device)
        self.scores: Tensor | None = None  # of the training rows, offline before online; recomputed after a restart
        self.metrics: Metrics = {}
        self.curiosity_left, self.curiosity_loss = 0, torch.zeros(())
        if self.config.relevance == "curiosity":
            self.curiosity = Curiosity(self.spec.observation_dim, self.spec.action_dim).to(self.device)
            self.curiosity_optimizer = Optimizer(self.curiosity.parameters(), self.config.curiosity_learning_rate)

    @property
    def num_updates(self) -> int:
        """Optimizer steps of curiosity and denoiser together."""
        curiosity = self.config.curiosity_updates if self.config.relevance == "curiosity" else 0
        return curiosity + self.model_updates

    def training_mix(self, replay: Replay) -> tuple[float, float]:
        """Online rows only, or the union."""
        return (0.0, 1.0) if self.config.rows == "online" and len(replay.online) else proportional(replay)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Start a refresh; curiosity's observation normalizer is fitted in the first refresh only."""
        if self.config.relevance == "td_error":
            require_agent(agent)
        super().begin_refresh(replay, agent)
        self.scores, self.curiosity_left = None, self.num_updates - self.model_updates
        if self.curiosity_left and self.num_refreshes == 0:
            observations = [pool.all().observations for pool in (replay.offline, replay.online)]
            self.curiosity.normalizer.fit(torch.cat(observations))

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Take one step of the curiosity module or, once it is trained, of the denoiser."""
        with torch.autocast(self.device.type, enabled=False):  # scores are small differences of features
            if self.curiosity_left > 0:
                return self.update_curiosity(replay)
            if self.scores is None:
                self.score(replay, agent)
        return super().update(replay, agent) | self.metrics

    def update_curiosity(self, replay: Replay) -> Metrics:
        """Take one curiosity step on this process's part of a uniform batch of real rows."""
        size = batch_part(self.config.batch_size, "generator.batch_size")
        batch = replay.gather(replay.union(self.row_rng.integers(replay.num_real, size)))
        loss = self.curiosity.loss(batch.observations, batch.actions, batch.next_observations)
        self.curiosity_loss = self.curiosity_optimizer.step(loss)
        self.curiosity_left -= 1
        return {"curiosity_loss": self.curiosity_loss}

    @torch.no_grad()
    def score(self, replay: Replay, agent: Agent) -> None:
        """Score the denoiser's training rows; the metric `score` is their mean before scaling."""
        pools = zip((replay.offline, replay.online), self.training_mix(replay), strict=True)
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
        """[B] raw scores of real rows, NaN if unknown."""
        if self.config.relevance == "curiosity":
            return self.curiosity(batch.observations, batch.actions, batch.next_observations)
        return td_errors(agent, batch, replay) if self.config.relevance == "td_error" else known_returns(batch)

    def conditions(self, batch: Transitions) -> Tensor:
        """Scores of real rows, with score dropout."""
        assert self.scores is not None
        offset = len(self.scores) - self.model.pool_rows[1]  # of the online rows, after the offline ones
        scores = self.scores[batch.rows + offset * (batch.sources == Source.ONLINE)]
        dropped = self.rng.uniform(len(batch))
        return drop_conditions(scores, dropped, null=self.model.null, probability=self.config.score_dropout)

    def denoiser(self, size: int, source: Source, replay: Replay, agent: Agent) -> Denoiser:
        """The model guided toward scores resampled from the highest scores of real rows."""
        condition = self.top_scores(self.rng.uniform(size))
        return classifier_free(self.model, condition=condition, null=self.model.null, scale=self.config.guidance)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; scores are recomputed from it."""
        super().load_state_dict(state)
        self.scores = None
