"""Whole batches of recent online rows, or of all rows: the online-offline replay buffer of APL (Zheng et al., 2023).

https://arxiv.org/abs/2303.07693
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.types import Source, Transitions, TransitionSpec


class Choice(Mixture):
    """With some probability a batch of recent online rows, which is not regularised, else one of the union.

    Recent are the newest rows of the online pool; the union is uniform over offline and online rows together, so that
    each has the share of its size. Generated rows keep the share they are asked for in both, and belong to what was
    chosen: a batch is regularised as a whole or not at all. CFDG (arXiv 2508.06806) mixes them into APL's batches and
    does not say which. With probability 0 this is the uniform union that IQL, SPOT and others draw from.
    """

    @dataclass(frozen=True)
    class Config(Mixture.Config):
        """Defaults are APL's. Ramp and shares tell how much is generated, and which pools are drawn from."""

        probability: Annotated[float | None, "of a batch of recent rows; null: the online share asked for"] = None
        recent: Annotated[int, "newest online rows that are recent"] = 20_000
        gate: Annotated[int, "recent rows of which there must be more before they are chosen"] = 10_000

    config: Config

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        if not 0 <= config.gate < config.recent:
            raise InputError(f"setting 'sampler.gate' is {config.gate}, expected 0 to below recent={config.recent}")
        if config.probability is not None and not 0 <= config.probability <= 1:
            raise InputError(f"setting 'sampler.probability' is {config.probability}, expected 0 to 1")
        super().__init__(config, spec, seed=seed, device=device)

    def sample(self, replay: Replay, batch_size: int) -> Transitions:
        """[batch_size] rows with raw rewards, `regularization` 0 where they are recent; the same on every process."""
        real, generated = self.effective(replay).split(2)
        recent = self.is_recent(replay) and bool(real[Source.ONLINE] > 0)
        counts = self._counts(torch.cat([real.sum(0, keepdim=True), torch.zeros(1), generated]), batch_size)
        parts = [self.real_rows(replay, counts[0], real > 0, recent)]
        for source in (Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE):
            rows = self._uniform(counts[source], len(replay.pools[source]))
            parts.append(torch.stack([rows, torch.full_like(rows, source)]))
        order = torch.randperm(batch_size, generator=self.noise.generator)
        rows, pools = torch.cat(parts, dim=1)[:, order].to(replay.memory["rewards"].device)
        batch = replay.gather(rows, pools)
        return batch.where(regularization=torch.zeros_like(batch.regularization)) if recent else batch

    def is_recent(self, replay: Replay) -> bool:
        """Whether to draw recent rows now; the number it takes is drawn even where there are too few of them."""
        asked = self.shares.online / max(self.shares.offline + self.shares.online, 1e-12)
        probability = asked if self.config.probability is None else self.config.probability
        chosen = float(torch.rand((), generator=self.noise.generator)) < probability
        return chosen and min(len(replay.online), self.config.recent) > self.config.gate

    def real_rows(self, replay: Replay, count: int, wanted: Tensor, recent: bool) -> Tensor:
        """[2, count]: rows, and pools, of recent rows or of the union of `wanted` pools ([2] bool: offline, online).

        Online rows are counted from the newest, so that the recent ones are the first.
        """
        ring = replay.online
        num_offline = 0 if recent else len(replay.offline) * int(wanted[Source.OFFLINE])
        num_online = min(len(ring), self.config.recent) if recent else len(ring) * int(wanted[Source.ONLINE])
        drawn = self._uniform(count, num_offline + num_online)
        newest_first = (ring.position - 1 - (drawn - num_offline)) % max(ring.capacity, 1)
        is_online = drawn >= num_offline
        rows = torch.where(is_online, newest_first, drawn)
        return torch.stack([rows, torch.where(is_online, int(Source.ONLINE), int(Source.OFFLINE))])

    def _uniform(self, count: int, size: int) -> Tensor:
        return (torch.rand(count, generator=self.noise.generator, dtype=torch.float64) * size).long()
