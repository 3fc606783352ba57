"""Batches mixed from the four sources by share: the reweighting sampler of CFDG (arXiv 2508.06806, section 3.3)."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.schedule import Shares
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import GENERATED, Metrics, Source, TransitionSpec

NONE = 1e-12


class Mixture(Stateful):
    """Draws shuffled batches with a given share of each source, exact over time.

    The online share and, if any of them have the online label, both generated ones are scaled by `min(1, |online| /
    ramp)` and the remainder goes to offline, so that the first online rows are not repeated a hundred times and
    generated rows keep the generator's split by label; `ramp: 0` gives the paper's fixed shares. The share of an empty
    pool is redistributed in proportion to the other shares; if those are all 0, offline (or else online) rows fill the
    batch. Shares set by the user are neither ramped nor scaled; the others split the remainder.
    """

    @dataclass(frozen=True)
    class Config:
        """Shares set here override those of learner and generator."""

        ramp: Annotated[int, "online rows at which the online and generated shares are full; 0: at once", Ge(0)] = (
            50_000
        )
        offline: Annotated[
            float | None, "share of offline rows; null: set by learner and generator", Interval(ge=0, le=1)
        ] = None
        online: Annotated[
            float | None, "share of online rows; null: set by learner and generator", Interval(ge=0, le=1)
        ] = None
        generated_offline: Annotated[
            float | None, "share of generated rows with the offline label; null: set by generator", Interval(ge=0, le=1)
        ] = None
        generated_online: Annotated[
            float | None, "share of generated rows with the online label; null: set by generator", Interval(ge=0, le=1)
        ] = None

        def __post_init__(self):
            total = sum(getattr(self, source.name.lower()) or 0 for source in Source)
            if total > 1 + 1e-9:
                raise ValueError(f"the shares of the pools sum to {total:.4g}, expected at most 1")

    state_fields = ("carry",)

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        given = {source: getattr(config, source.name.lower()) for source in Source}
        self.fixed = {source: share for source, share in given.items() if share is not None}
        self.config = config
        self.rng = ShardedRng(seed, "cpu", shared=False)  # the same draws on every process
        self.carry = [0.0] * len(Source)
        self.known: tuple[Any, Any] = (None, None)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Do nothing: the shares do not adapt."""
        return {}

    def sample(self, replay: Replay, shares: Shares, batch_size: int) -> Draw:
        """[batch_size] rows, uniform within their pools; the same on every process."""
        sources = self.draw_sources(replay, shares, batch_size)
        pools = pools_of(sources, shares)
        rows = self.rng.integers(pool_sizes(replay)[pools], batch_size)
        order = torch.randperm(batch_size, generator=self.rng.generator)
        return Draw.create(rows[order], pools[order], sources=sources[order])

    def draw_sources(self, replay: Replay, shares: Shares, batch_size: int) -> Tensor:
        """[batch_size] sources in order, by share; with `whole_batches`, one source drawn by share for all rows."""
        effective = self.effective(replay, shares)
        if shares.whole_batches:
            return torch.multinomial(effective, 1, generator=self.rng.generator).expand(batch_size)
        counts = self._counts(effective, batch_size)
        return torch.repeat_interleave(torch.arange(len(Source)), torch.tensor(counts))

    def effective(self, replay: Replay, shares: Shares) -> Tensor:
        """[4] shares after settings, ramp and empty pools, summing to 1; raises ValueError without real rows.

        They are computed again only when a pool or `shares` changes.
        """
        key = (shares, *(len(pool) for pool in replay.pools.values()))
        if key != self.known[0]:
            self.known = key, self._effective(replay, shares)
        return self.known[1]

    def _effective(self, replay: Replay, shares: Shares) -> Tensor:
        effective = torch.tensor([shares.of(source) for source in Source], dtype=torch.float64)
        fullness = min(1.0, len(replay.online) / self.config.ramp) if self.config.ramp else 1.0
        if effective[Source.OFFLINE] > 0 or shares.offline_fills:
            together = GENERATED if effective[Source.GENERATED_ONLINE] > 0 else ()  # the split by label is kept
            for source in (Source.ONLINE, *together):
                effective[Source.OFFLINE] += effective[source] * (1 - fullness)
                effective[source] *= fullness
        if self.fixed:
            rest = effective * torch.tensor([float(source not in self.fixed) for source in Source])
            effective = rest / rest.sum().clamp(min=NONE) * (1 - sum(self.fixed.values()))
            for source, share in self.fixed.items():
                effective[source] = share
        pools = pools_of(torch.arange(len(Source)), shares)
        is_held = (pool_sizes(replay)[pools] > 0).double()
        available = effective * is_held
        if available.sum() == 0:
            available = is_held * torch.tensor([1.0, 1.0 - is_held[Source.OFFLINE], 0.0, 0.0], dtype=torch.float64)
        if available.sum() == 0:
            raise ValueError("the replay holds neither offline nor online rows")
        return available / available.sum()

    def _counts(self, shares: Tensor, batch_size: int) -> list[int]:
        """Rows per source; rounding errors are carried over to the next batch, so that shares are exact over time."""
        exact = [batch_size * share + carry for share, carry in zip(shares.tolist(), self.carry, strict=True)]
        counts = [max(0, int(number)) if share > 0 else 0 for number, share in zip(exact, shares.tolist(), strict=True)]
        while sum(counts) < batch_size:
            behind = max(range(len(counts)), key=lambda i: (shares[i] > 0, exact[i] - counts[i]))
            counts[behind] += 1
        while sum(counts) > batch_size:
            ahead = min((i for i in range(len(counts)) if counts[i]), key=lambda i: exact[i] - counts[i])
            counts[ahead] -= 1
        self.carry = [e - c if share > 0 else 0.0 for e, c, share in zip(exact, counts, shares.tolist(), strict=True)]
        return counts


def pool_sizes(replay: Replay) -> Tensor:
    """[4], the number of rows in each pool."""
    return torch.tensor([len(replay.pools[source]) for source in Source])


def pools_of(sources: Tensor, shares: Shares) -> Tensor:
    """The pools from which to draw rows of `sources`; rows generated at batch time start from real rows."""
    return torch.where(sources >= GENERATED[0], sources - GENERATED[0], sources) if shares.at_batch_time else sources
