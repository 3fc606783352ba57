"""Batches mixed from the four pools by share: the reweighting sampler of CFDG (arXiv 2508.06806, section 3.3)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from o2o_diffusion.distributed import Noise
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Shares
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class Mixture(Stateful):
    """Each pool's share of a batch, exact over time, shuffled.

    The online shares grow with the online pool, `min(1, |online| / ramp)`, and the rest goes to offline: a few online
    rows are not repeated a hundred times. An empty pool gives its share to the others in proportion, and where
    all of them want nothing, offline (or else online) rows fill the batch. `ramp: 0` gives the paper's fixed shares.
    A share that the user sets is neither ramped nor scaled; the others divide what remains.
    """

    @dataclass(frozen=True)
    class Config:
        """What the user sets here wins over what learner and generator ask for."""

        ramp: Annotated[int, "online rows at which the online shares reach their full size; 0: at once"] = 50_000
        offline: Annotated[float | None, "share of offline rows; null: as learner and generator ask"] = None
        online: Annotated[float | None, "share of online rows; null: as learner and generator ask"] = None
        generated_offline: Annotated[float | None, "share of generated rows with the offline label; null: as asked"] = (
            None
        )
        generated_online: Annotated[float | None, "share of generated rows with the online label; null: as asked"] = (
            None
        )

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        given = {source: getattr(config, source.name.lower()) for source in Source}
        self.fixed = {source: share for source, share in given.items() if share is not None}
        if any(share < 0 for share in self.fixed.values()) or sum(self.fixed.values()) > 1 + 1e-9:
            raise InputError(
                f"shares of the sampler {list(self.fixed.values())} must not be negative nor exceed 1 in sum"
            )
        self.config = config
        self.noise = Noise(seed, "cpu")
        self.shares = Shares(offline=1.0)
        self.carry = [0.0] * len(Source)

    counters = ("carry",)

    def begin_phase(self, shares: Shares) -> None:
        """Draw by `shares` from now on, except where the settings say otherwise."""
        self.shares = shares

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Nothing to learn."""
        return {}

    def sample(self, replay: Replay, batch_size: int) -> Transitions:
        """[batch_size] rows with raw rewards; the same on every process."""
        pools, generator = self.draw_pools(replay, batch_size), self.noise.generator
        sizes = torch.tensor([len(replay.pools[source]) for source in Source])
        rows = (torch.rand(batch_size, generator=generator, dtype=torch.float64) * sizes[pools]).long()
        order = torch.randperm(batch_size, generator=generator)
        device = replay.memory["rewards"].device
        return replay.gather(rows[order].to(device), pools[order].to(device))

    def draw_pools(self, replay: Replay, batch_size: int) -> Tensor:
        """[batch_size] pools, each to its share, one after the other; or one for all."""
        shares = self.effective(replay)
        if self.shares.whole_batches:
            return torch.multinomial(shares, 1, generator=self.noise.generator).expand(batch_size)
        return torch.repeat_interleave(torch.arange(len(Source)), torch.tensor(self._counts(shares, batch_size)))

    def effective(self, replay: Replay) -> Tensor:
        """[4] shares after settings, ramp and empty pools, summing to 1; ValueError when every pool is empty."""
        shares = torch.tensor([self.shares.of(source) for source in Source], dtype=torch.float64)
        fullness = min(1.0, len(replay.online) / self.config.ramp) if self.config.ramp else 1.0
        if shares[Source.OFFLINE] > 0 or self.shares.offline_fills:
            for source in (Source.ONLINE, Source.GENERATED_ONLINE):
                shares[Source.OFFLINE] += shares[source] * (1 - fullness)
                shares[source] *= fullness
        if self.fixed:
            rest = shares * torch.tensor([float(source not in self.fixed) for source in Source])
            shares = rest / rest.sum().clamp(min=1e-12) * (1 - sum(self.fixed.values()))
            for source, share in self.fixed.items():
                shares[source] = share
        held = torch.tensor([float(len(replay.pools[source]) > 0) for source in Source], dtype=torch.float64)
        available = shares * held
        if available.sum() == 0:
            available = held * torch.tensor([1.0, 1.0 - held[Source.OFFLINE], 0.0, 0.0], dtype=torch.float64)
        if available.sum() == 0:
            raise ValueError("the replay holds neither offline nor online rows")
        return available / available.sum()

    def _counts(self, shares: Tensor, batch_size: int) -> list[int]:
        """Rows per pool; what rounding takes from a pool now it gets back later, so that shares are exact over time."""
        wanted = [batch_size * share + carry for share, carry in zip(shares.tolist(), self.carry, strict=True)]
        counts = [
            max(0, int(number)) if share > 0 else 0 for number, share in zip(wanted, shares.tolist(), strict=True)
        ]
        while sum(counts) < batch_size:
            behind = max(range(len(counts)), key=lambda i: (shares[i] > 0, wanted[i] - counts[i]))
            counts[behind] += 1
        while sum(counts) > batch_size:
            ahead = min((i for i in range(len(counts)) if counts[i]), key=lambda i: wanted[i] - counts[i])
            counts[ahead] -= 1
        self.carry = [w - c if share > 0 else 0.0 for w, c, share in zip(wanted, counts, shares.tolist(), strict=True)]
        return counts
