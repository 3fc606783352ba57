"""Batches of recent online rows or of all rows: APL's online-offline replay buffer (Zheng et al., 2023).

https://arxiv.org/abs/2303.07693
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.samplers.mixture import Mixture, pool_sizes, pools_of
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import GENERATED, Source, TransitionSpec


class RecentOrUnion(Mixture):
    """Draws at random either a batch of recent online rows, without regularization, or a batch of the union.

    Recent rows are the newest online rows; the union is uniform over offline and online rows together, so each pool's
    share is proportional to its size. Generated rows keep their share in both and are regularized like the rest of the
    batch: CFDG (arXiv 2508.06806) mixes them into APL's batches without specifying how. Probability 0 is uniform
    sampling from the union, as in IQL, SPOT and others.
    """

    @dataclass(frozen=True)
    class Config(Mixture.Config):
        """Defaults are APL's. Ramp and shares set the generated share and the pools in use."""

        probability: Annotated[
            float | None, "probability of a recent batch; null: online share of real rows", Interval(ge=0, le=1)
        ] = None
        recent: Annotated[int, "number of newest online rows that count as recent", Ge(1)] = 20_000
        gate: Annotated[int, "draw recent rows only if there are more than this many", Ge(0)] = 10_000
        offline_fraction: Annotated[
            float, "fraction of the offline rows kept, at random, once online rows are drawn", Interval(ge=0, le=1)
        ] = 1.0
        min_offline: Annotated[int, "offline rows kept at least", Ge(0)] = 50_000

        def __post_init__(self):
            super().__post_init__()
            if self.gate >= self.recent:
                raise ValueError(f"'gate' is {self.gate}, expected less than 'recent', {self.recent}")

    config: Config

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        super().__init__(config, spec, seed=seed, device=device)
        self.seed, self.permutation = seed, torch.empty(0, dtype=torch.int64)

    def sample(self, replay: Replay, shares: Shares, batch_size: int) -> Draw:
        """[batch_size] rows, with `regularization` 0 for recent rows; the same on every process."""
        real, generated = self.effective(replay, shares).split(2)
        recent = self.is_recent(replay, shares) and bool(real[Source.ONLINE] > 0)
        counts = self._counts(torch.cat([real.sum(0, keepdim=True), torch.zeros(1), generated]), batch_size)
        drawn = self.real_rows(replay, counts[0], real > 0, recent)
        rows, pools, sources = [drawn.rows], [drawn.pools], [drawn.pools]
        for source in GENERATED:
            sources.append(torch.full((counts[source],), int(source)))
            pools.append(pools_of(sources[-1], shares))
            rows.append(self.rng.integers(pool_sizes(replay)[pools[-1]], counts[source]))
        order = torch.randperm(batch_size, generator=self.rng.generator)
        columns = [torch.cat(parts)[order] for parts in (rows, pools, sources)]
        regularization = torch.full((batch_size,), 0.0 if recent else 1.0)
        return Draw.create(*columns[:2], sources=columns[2], regularization=regularization)

    def is_recent(self, replay: Replay, shares: Shares) -> bool:
        """Whether to draw recent rows now; consumes one random number even if there are too few of them."""
        asked = shares.online / max(shares.offline + shares.online, 1e-12)
        probability = asked if self.config.probability is None else self.config.probability
        chosen = float(torch.rand((), generator=self.rng.generator)) < probability
        return chosen and min(len(replay.online), self.config.recent) > self.config.gate

    def real_rows(self, replay: Replay, count: int, included: Tensor, recent: bool) -> Draw:
        """[count] recent rows, or rows of the union of the `included` pools ([2] bool: offline, online).

        Online rows are indexed from the newest, so that recent rows come first.
        """
        ring = replay.online
        kept = self.kept_offline(len(replay.offline)) if included[Source.ONLINE] else None
        num_kept = len(replay.offline) if kept is None else len(kept)
        num_offline = 0 if recent else num_kept * int(included[Source.OFFLINE])
        num_online = min(len(ring), self.config.recent) if recent else len(ring) * int(included[Source.ONLINE])
        drawn = self.rng.integers(num_offline + num_online, count)
        is_online = drawn >= num_offline
        newest_first = (ring.position - 1 - (drawn - num_offline)) % max(ring.capacity, 1)
        offline = drawn if kept is None else kept[drawn.clamp(max=num_kept - 1)]
        rows = torch.where(is_online, newest_first, offline)
        return Draw.create(rows, torch.where(is_online, int(Source.ONLINE), int(Source.OFFLINE)))

    def kept_offline(self, size: int) -> Tensor | None:
        """Rows of the fixed random subset of `size` offline rows; None: all. A restart finds the same subset."""
        c = self.config
        if c.offline_fraction == 1:
            return None
        if self.permutation.shape != (size,):
            self.permutation = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
        return self.permutation[: max(round(c.offline_fraction * size), c.min_offline)]
