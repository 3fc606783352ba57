"""Prioritised experience replay, proportional (Schaul et al., 2016), https://arxiv.org/abs/1511.05952."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from o2o_diffusion.agents import td_errors
from o2o_diffusion.distributed import broadcast
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec

UNSEEN = float("inf")


class Prioritized(Mixture):
    """The mixture's shares of the pools; within the real ones rows by P(i) ~ (|TD error| + epsilon)^alpha.

    Errors are the agent's, of the rows drawn last, at the next action it would be evaluated with; rows that were never
    drawn count as the largest error seen. Weights (N P(i))^-beta, divided by the batch's largest, undo the preference.
    Generated rows are uniform. Rows are found in the cumulative sum of all N priorities, which is made anew every
    `refresh_interval` draws: a draw of B rows costs O(B log N + N / refresh_interval), beside the errors of B rows, and
    a new row waits that many draws at most. This table, and a constant beta where the paper raises it to 1, are ours.
    """

    @dataclass(frozen=True)
    class Config(Mixture.Config):
        """Defaults are the paper's for proportional priorities; it does not give epsilon."""

        alpha: Annotated[float, "how much errors count; 0: uniform"] = 0.6
        beta: Annotated[float, "how much weights undo the preference; 1: altogether"] = 0.4
        epsilon: Annotated[float, "added to every |TD error|, so that no row is lost"] = 1e-2
        refresh_interval: Annotated[int, "draws between two tables of probabilities"] = 100

    config: Config
    counters = (*Mixture.counters, "draws", "sizes", "position")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        if config.refresh_interval < 1 or config.epsilon <= 0:
            raise InputError(
                f"settings 'sampler.refresh_interval' and 'sampler.epsilon' are {config.refresh_interval} and"
                f" {config.epsilon}, expected at least 1 and above 0"
            )
        super().__init__(config, spec, seed=seed, device=device)
        self.draws, self.sizes, self.position = 0, [0] * len(Source), 0
        self.tensors: dict[str, Tensor] = {}

    def sample(self, replay: Replay, batch_size: int) -> Transitions:
        """[batch_size] rows with raw rewards and importance weights; the same on every process."""
        self._prepare(replay)
        sizes = [len(replay.pools[source]) for source in Source]
        appeared = any(now < known or now > known == 0 for now, known in zip(sizes, self.sizes, strict=True))
        if self.draws % self.config.refresh_interval == 0 or appeared:
            self.refresh(sizes)
        self.draws += 1
        order = torch.randperm(batch_size, generator=self.noise.generator)
        rows, pools, probabilities = self.draw(replay, self.draw_pools(replay, batch_size)[order])
        counts = torch.tensor(self.sizes, device=rows.device)[pools]
        weights = (counts * probabilities) ** -self.config.beta
        self.tensors["drawn"] = torch.stack([rows, pools])
        return replay.gather(rows, pools).where(weights=(weights / weights.max()).float())

    def refresh(self, sizes: list[int]) -> None:
        """Make the table anew: the cumulative sum of (|TD error| + epsilon)^alpha over all N rows, from 0 on."""
        maximum = self.tensors["maximum"]
        known = torch.minimum(self.tensors["priorities"], torch.where(maximum > 0, maximum, 1.0))
        cumulative = (known.double() ** self.config.alpha).cumsum(0)
        self.tensors["table"] = torch.cat([cumulative.new_zeros(1), cumulative])
        self.sizes = sizes

    def draw(self, replay: Replay, pools: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One row of each of `pools` [B], the pools, and each row's probability within its pool."""
        table = self.tensors["table"]
        starts = torch.tensor([replay.pools[source].start for source in Source], device=table.device)
        ends = starts + torch.tensor(self.sizes, device=table.device)
        uniform = torch.rand(len(pools), generator=self.noise.generator, dtype=torch.float64).to(table.device)
        pools = pools.to(table.device)
        first, last = starts[pools], ends[pools] - 1
        mass = table[last + 1] - table[first]
        found = torch.searchsorted(table, table[first] + uniform * mass, right=True) - 1
        found = torch.clamp(found, first, last)  # rounding may step over the edge
        return found - first, pools, (table[found + 1] - table[found]) / mass

    @torch.no_grad()
    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Give the rows drawn last the priority that they have for the agent now."""
        self._prepare(replay)
        priorities, drawn = self.tensors["priorities"], self.tensors["drawn"]
        ring = replay.online
        written = torch.arange((ring.position - self.position) % max(ring.capacity, 1), device=drawn.device)
        priorities[ring.start + (self.position + written) % max(ring.capacity, 1)] = UNSEEN
        self.position = ring.position
        if drawn.numel() == 0:
            return {}
        errors = broadcast(td_errors(agent, replay.gather(*drawn), replay).float())  # the main process's everywhere
        starts = torch.tensor([replay.pools[source].start for source in Source], device=drawn.device)
        is_real = drawn[1] <= Source.ONLINE
        found = torch.where(is_real, errors + self.config.epsilon, UNSEEN)
        priorities[drawn[0] + starts[drawn[1]]] = found
        largest = torch.where(is_real, found, 0.0).max()
        self.tensors["maximum"] = torch.maximum(self.tensors["maximum"], largest)
        return {"td_error": errors.mean()}

    def state_dict(self) -> dict[str, Any]:
        """Counters, noise, priorities and table."""
        return super().state_dict() | {"tensors": {name: tensor.clone() for name, tensor in self.tensors.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict({name: part for name, part in state.items() if name != "tensors"})
        self.tensors = {name: tensor.clone() for name, tensor in state["tensors"].items()}

    def _prepare(self, replay: Replay) -> None:
        """Tensors for every row of the replay, where it lies."""
        rewards = replay.memory["rewards"]
        if not self.tensors:
            self.tensors = {"priorities": torch.full_like(rewards, UNSEEN), "maximum": rewards.new_zeros(())}
            self.tensors["drawn"] = torch.empty(2, 0, dtype=torch.int64)
        self.tensors = {name: tensor.to(rewards.device) for name, tensor in self.tensors.items()}
