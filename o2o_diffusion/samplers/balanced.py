"""Balanced replay (Lee et al., 2021), https://arxiv.org/abs/2107.00591: priorities by an online-to-offline ratio."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from o2o_diffusion.distributed import seeded
from o2o_diffusion.networks.ratio import DensityRatio, ratio_loss
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.samplers.prioritized import Prioritized
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class Balanced(Prioritized):
    """Draws real rows from offline and online together, P(i) ~ w^(1/temperature), w = d_online(s, a) / d_offline(s, a).

    A network learns w, one step per draw, and sets the priorities of the rows of the last draw, divided by the mean
    over offline rows. Offline rows start with priority 1 and online rows with the largest so far, which at first gives
    the first `initial_rows` online rows a share of `initial_share`. Weights are 1. Of the learner's shares, only which
    pools it uses counts; generated rows keep their share. The network standardizes observations, the authors' does not.
    """

    @dataclass(frozen=True)
    class Config(Prioritized.Config):
        """Defaults are the authors'; `alpha` and `beta` are those of Prioritized, fixed by the method."""

        alpha: Annotated[float, "priority exponent; 0: uniform", Ge(0)] = 1.0
        beta: Annotated[float, "importance-sampling exponent; 1: full correction", Ge(0)] = 0.0
        temperature: Annotated[float, "temperature of the ratio; larger is closer to uniform", Gt(0)] = 5.0
        initial_share: Annotated[float, "share of the first online rows", Interval(gt=0, lt=1)] = 0.5
        initial_rows: Annotated[int, "number of online rows that have this share together", Ge(1)] = 1_000
        hidden: Annotated[tuple[int, ...], "hidden layer widths of the network", Ge(1)] = (256, 256)
        learning_rate: Annotated[float, "Adam learning rate of the network", Gt(0)] = 3e-4
        ratio_batch_size: Annotated[int, "rows of each pool per step of the network", Ge(1)] = 256

    config: Config
    state_fields = (*Prioritized.state_fields, "is_fitted")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        super().__init__(config, spec, seed=seed, device=device)
        with seeded(seed):
            self.ratio = DensityRatio(spec.observation_dim, spec.action_dim, config.hidden).to(device)
        self.optimizer = Optimizer(self.ratio.parameters(), config.learning_rate)
        self.is_fitted = False

    def draw_sources(self, replay: Replay, shares: Shares, batch_size: int) -> Tensor:
        """[batch_size] sources in order: generated ones by share, offline and online ones by their pools' mass."""
        real, generated = self.effective(replay, shares).split(2)
        counts = self._counts(torch.cat([real.sum(0, keepdim=True), torch.zeros(1), generated]), batch_size)
        table, starts = self.tensors["table"], replay.starts[:2].cpu()
        ends = starts + torch.tensor(self.sizes[:2])
        mass = (table.cpu()[ends] - table.cpu()[starts]) * (real > 0)
        is_online = torch.rand(counts[0], generator=self.rng.generator, dtype=torch.float64) >= mass[0] / mass.sum()
        online = int(is_online.sum())
        numbers = torch.tensor([counts[0] - online, online, *counts[2:]])
        return torch.repeat_interleave(torch.arange(len(Source)), numbers)

    def measure(self, agent: Agent, batch: Transitions, replay: Replay) -> tuple[Tensor, Metrics]:
        """[B] priorities of the rows `batch`, after one step of the network, and metrics; 1 without rows of both."""
        if not (len(replay.offline) and len(replay.online)):
            return torch.ones_like(batch.rewards), {}
        offline, online = (self.rows_of(replay, source) for source in (Source.OFFLINE, Source.ONLINE))
        if not self.is_fitted:
            self.ratio.normalizer.fit(replay.offline.all().observations)
            self.is_fitted = True
        with torch.enable_grad():
            loss = self.optimizer.step(ratio_loss(self.ratio(*offline), self.ratio(*online)))
        mean = self.sharpened(*offline).mean().clamp(min=1e-6)
        priorities = (self.sharpened(batch.observations, batch.actions) / mean).clamp(1e-3, 1e3)
        return priorities, {"ratio_loss": loss, "priority": priorities.mean()}

    def sharpened(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], w^(1/temperature)."""
        return self.ratio(observations, actions) ** (1 / self.config.temperature)

    def rows_of(self, replay: Replay, source: Source) -> tuple[Tensor, Tensor]:
        """Observations and actions of random rows of a pool, the same on every process."""
        rows = self.rng.integers(len(replay.pools[source]), self.config.ratio_batch_size)
        batch = replay.gather(Draw.create(rows, torch.full_like(rows, int(source))))
        return batch.observations, batch.actions

    def _prepare(self, replay: Replay) -> None:
        is_new = not self.tensors
        super()._prepare(replay)
        if is_new:
            c, size = self.config, len(replay.offline)
            self.tensors["priorities"][:size] = 1.0
            first = size * c.initial_share / ((1 - c.initial_share) * c.initial_rows)
            self.tensors["maximum"].fill_(first)
