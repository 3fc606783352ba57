"""MOORe: model-based offline-to-online RL (Mao et al., 2022), https://arxiv.org/abs/2201.10070, re-derived.

Rollouts of the policy in an ensemble of dynamics models, after MBPO (arXiv 1906.08253) and MOPO (arXiv 2005.13239).
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.distributed import seeded
from o2o_diffusion.generators.onpolicy import OnPolicy
from o2o_diffusion.generators.outcomes import EnsembleOutcomes
from o2o_diffusion.networks.ratio import DensityRatio, ratio_loss
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec

RATIO_ROWS, CANDIDATES = 256, 4
"""Rows of each pool per step of the ratio's network; candidates per start state."""


class MOORe(OnPolicy):
    """Stored rollouts of the policy in `onpolicy`'s ensemble, with a penalty on rewards where its members are unsure.

    The penalty is `penalty` times the norm of the standard deviation of the members' normalized means, their
    disagreement, which unlike their own noise (MOPO's choice) says where data are missing. It falls linearly to 0 over
    `anneal_rows` online rows. Rollouts with the offline label start in offline rows drawn with P ~ w^(1/temperature),
    w = d_online(s, a) / d_offline(s, a), those with the online label in any online row. Only the paper's abstract was
    at hand: all formulas and values are this package's.
    """

    @dataclass(frozen=True)
    class Config(OnPolicy.Config):
        """Chosen values."""

        share: Annotated[float, "share of generated rows in a batch", Ge(0)] = 0.5
        noisy: Annotated[bool, "draw the ensemble's outcomes instead of taking their means"] = True
        num_samples: Annotated[int, "rows generated per refresh", Ge(0)] = 20_000
        horizon: Annotated[int, "steps of a rollout", Ge(1)] = 1
        penalty: Annotated[float, "weight of the uncertainty, before any online row", Ge(0)] = 1.0
        anneal_rows: Annotated[int, "online rows at which the penalty ends", Ge(1)] = 100_000
        temperature: Annotated[float, "temperature of the ratio; larger is closer to uniform", Gt(0)] = 5.0
        ratio_rate: Annotated[float, "Adam learning rate of the ratio's network", Gt(0)] = 3e-4

        def __post_init__(self):
            super().__post_init__()
            if self.model != "ensemble":
                raise ValueError(f"'model' is {self.model}, expected ensemble: the penalty is its members' uncertainty")

    config: Config

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        super().__init__(config, spec, seed=seed, device=device)
        with seeded(seed):
            hidden = [config.width] * config.depth
            self.ratio = DensityRatio(spec.observation_dim, spec.action_dim, hidden).to(device)
        self.ratio_optimizer = Optimizer(self.ratio.parameters(), config.ratio_rate)

    def share(self, replay: Replay) -> GeneratedShare:
        """`share` of the settings, from pools of both labels."""
        return GeneratedShare(self.config.share, online=self.config.online_share)

    def next_refresh(self, replay: Replay) -> Refresh:
        """The next refresh, from the settings, with an open gate."""
        refresh = super().next_refresh(replay)
        return Refresh(refresh.updates, rows=self.config.num_samples, first=refresh.first, interval=refresh.interval)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Prepare the model, and fit the ratio's statistics to the offline rows."""
        super().begin_refresh(replay, agent)
        if len(replay.offline):
            self.ratio.normalizer.fit(replay.offline.all().observations)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Run one step of the model and, with rows of both pools, one of the ratio."""
        metrics = super().update(replay, agent)
        if not (len(replay.offline) and len(replay.online)):
            return metrics
        pools = [pool[self.shared_rng.integers(len(pool), RATIO_ROWS)] for pool in (replay.offline, replay.online)]
        offline, online = (self.ratio(rows.observations, rows.actions) for rows in pools)
        return metrics | {"ratio_loss": self.ratio_optimizer.step(ratio_loss(offline, online))}

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """At most `num_samples` rows of rollouts with the label of `source`."""
        if not replay.num_real:
            return super().sample(num_samples, source=source, replay=replay, agent=agent)
        rows, steps = self.starts(math.ceil(num_samples / self.config.horizon), source, replay), []
        weight = self.penalty_weight(len(replay.online))
        for _ in range(self.config.horizon):
            steps.append(self.step(rows, agent, weight))
            going_on = steps[-1].terminations == 0
            rows = steps[-1][going_on]
            rows = rows.where(observations=rows.next_observations)
        made = Transitions.cat(steps)
        return made.where(sources=torch.full_like(made.sources, int(source)))[:num_samples]

    @torch.no_grad()
    def step(self, rows: Transitions, agent: Agent, weight: float) -> Transitions:
        """One step of the rollouts at `rows`, with penalized rewards."""
        made = self.rows(rows, agent, self.shared_rng)
        world = torch.full_like(rows.sources, int(Source.ONLINE if self.known[1] else Source.OFFLINE))
        uncertainty = self.uncertainty(self.inputs(rows, made.actions, world))
        return made.where(rewards=made.rewards - weight * uncertainty)

    def uncertainty(self, inputs: Tensor) -> Tensor:
        """[B], the norm of the standard deviation of the members' means, in standard deviations of each column."""
        outcomes: Any = self.model.model
        assert isinstance(outcomes, EnsembleOutcomes)
        scale: Any = outcomes.ensemble.members[0].targets
        return (outcomes.ensemble(inputs).mean.std(0, correction=0) / scale.std).norm(dim=-1)

    def penalty_weight(self, online_rows: int) -> float:
        """The weight of the uncertainty with `online_rows` in the replay."""
        return self.config.penalty * max(0.0, 1 - online_rows / self.config.anneal_rows)

    @torch.no_grad()
    def starts(self, count: int, source: Source, replay: Replay) -> Transitions:
        """`count` start rows: online ones at random, or offline ones by their ratio among random candidates."""
        has_both = len(replay.offline) and len(replay.online)
        if not has_both or source.real is Source.ONLINE:
            pools = [pool for pool in (replay.pools[source.real], replay.offline, replay.online) if len(pool)]
            return pools[0][self.shared_rng.integers(len(pools[0]), count)]
        rows = replay.offline[self.shared_rng.integers(len(replay.offline), CANDIDATES * count)]
        priorities = self.ratio(rows.observations, rows.actions) ** (1 / self.config.temperature)
        cumulative = priorities.clamp(1e-3, 1e3).double().cumsum(0)
        draws = self.shared_rng.uniform(count).double() * cumulative[-1]
        return rows[torch.searchsorted(cumulative, draws).clamp(max=len(rows) - 1)]
