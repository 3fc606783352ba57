"""Prioritized experience replay, proportional (Schaul et al., 2016), https://arxiv.org/abs/1511.05952."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.agents import td_errors
from o2o_diffusion.distributed import broadcast
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.samplers.mixture import Mixture, pools_of
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import GENERATED, Metrics, Source, Transitions, TransitionSpec

UNSEEN = float("inf")


class Prioritized(Mixture):
    """The mixture's pool shares; within the real pools, rows are drawn with P(i) ~ (|TD error| + epsilon)^alpha.

    TD errors are the agent's, at its greedy next action, updated for the rows of the last draw; rows never drawn get
    the largest error so far. Weights (N P(i))^-beta, divided by their maximum over the batch, correct the bias.
    Generated rows are drawn uniformly. Rows are looked up in the cumulative sum of all N priorities, which is rebuilt
    every `refresh_interval` draws: a draw of B rows costs O(B log N + N / refresh_interval), and a new row waits at
    most that many draws. The table and the constant beta differ from the paper, which anneals beta to 1.
    """

    @dataclass(frozen=True)
    class Config(Mixture.Config):
        """Defaults are the paper's for proportional priorities; the value of epsilon is not in the paper."""

        alpha: Annotated[float, "priority exponent; 0: uniform", Ge(0)] = 0.6
        beta: Annotated[float, "importance-sampling exponent; 1: full correction", Ge(0)] = 0.4
        epsilon: Annotated[float, "added to every |TD error|, so that every row can be drawn", Gt(0)] = 1e-2
        refresh_interval: Annotated[int, "draws between rebuilds of the priority table", Ge(1)] = 100

    config: Config
    state_fields = (*Mixture.state_fields, "draws", "sizes", "position", "tensors")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        super().__init__(config, spec, seed=seed, device=device)
        self.draws, self.sizes, self.position = 0, [0] * len(Source), 0
        self.tensors: dict[str, Tensor] = {}

    def sample(self, replay: Replay, shares: Shares, batch_size: int) -> Draw:
        """[batch_size] rows with importance weights; the same on every process."""
        self._prepare(replay)
        sizes = [len(replay.pools[source]) for source in Source]
        appeared = any(now < known or now > known == 0 for now, known in zip(sizes, self.sizes, strict=True))
        if self.draws % self.config.refresh_interval == 0 or appeared:
            self.refresh(sizes)
        self.draws += 1
        order = torch.randperm(batch_size, generator=self.rng.generator)
        sources = self.draw_sources(replay, shares, batch_size)[order].to(replay.device)
        pools = pools_of(sources, shares)
        rows, probabilities = self.draw(replay, pools)
        counts = torch.tensor(self.sizes, device=rows.device)[pools]
        weights = (counts * probabilities) ** -self.config.beta
        self.tensors["drawn"] = torch.stack([rows, pools])
        return Draw.create(rows, pools, sources=sources, weights=(weights / weights.max()).float())

    @property
    def exponent(self) -> float:
        """The exponent of priorities, alpha."""
        return self.config.alpha

    def refresh(self, sizes: list[int]) -> None:
        """Rebuild the table: the cumulative sum of (|TD error| + epsilon)^alpha over all N rows, starting at 0."""
        maximum, priorities = self.tensors["maximum"], self.tensors["priorities"]
        known = torch.where(priorities == UNSEEN, torch.where(maximum > 0, maximum, 1.0), priorities)
        cumulative = (known.double() ** self.exponent).cumsum(0)
        self.tensors["table"] = torch.cat([cumulative.new_zeros(1), cumulative])
        self.sizes = sizes

    def draw(self, replay: Replay, pools: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one row from each of `pools` [B]; also returns its probability within the pool."""
        table, starts = self.tensors["table"], replay.starts
        ends = starts + torch.tensor(self.sizes, device=table.device)
        uniform = torch.rand(len(pools), generator=self.rng.generator, dtype=torch.float64).to(table.device)
        first, last = starts[pools], ends[pools] - 1
        mass = table[last + 1] - table[first]
        found = torch.searchsorted(table, table[first] + uniform * mass, right=True) - 1
        found = torch.clamp(found, first, last)  # rounding may cross the boundary
        return found - first, (table[found + 1] - table[found]) / mass

    @torch.no_grad()
    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Set the priorities of the last draw's rows to their current values."""
        self._prepare(replay)
        priorities, (rows, pools) = self.tensors["priorities"], self.tensors["drawn"]
        ring = replay.online
        written = torch.arange((ring.position - self.position) % max(ring.capacity, 1), device=replay.device)
        priorities[ring.start + (self.position + written) % max(ring.capacity, 1)] = UNSEEN
        self.position = ring.position
        if len(rows) == 0:
            return {}
        measured, metrics = self.measure(agent, replay.gather(Draw.create(rows, pools)), replay)
        measured = broadcast(measured.float())  # the main process's, so that all processes draw the same
        is_real = pools < GENERATED[0]
        found = torch.where(is_real, measured, UNSEEN)
        priorities[replay.starts[pools] + rows] = found
        largest = torch.where(is_real, found, 0.0).max()
        self.tensors["maximum"] = torch.maximum(self.tensors["maximum"], largest)
        return metrics

    def measure(self, agent: Agent, batch: Transitions, replay: Replay) -> tuple[Tensor, Metrics]:
        """[B] priorities of the raw rows `batch`, |TD error| + epsilon, and metrics."""
        errors = td_errors(agent, batch, replay)
        return errors + self.config.epsilon, {"td_error": errors.mean()}

    def _prepare(self, replay: Replay) -> None:
        """Create the tensors, with one priority per row of the replay, or move restored ones to its device.

        If the replay has grown since they were saved, every row is unseen again.
        """
        if not self.tensors or len(self.tensors["priorities"]) != len(replay.memory["rewards"]):  # a grown replay
            self.draws = 0
            priorities = torch.full((len(replay.memory["rewards"]),), UNSEEN)
            drawn = torch.empty(2, 0, dtype=torch.int64)
            self.tensors = {"priorities": priorities, "maximum": torch.zeros(()), "drawn": drawn}
        self.tensors = {name: tensor.to(replay.device) for name, tensor in self.tensors.items()}
