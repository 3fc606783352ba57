"""The shadow test of a refresh: two copies of the learner train with and without the new rows before they are used.

Both draw the same real rows; in one, the generator's share of each batch is replaced by new rows, without the sampler's
ramp. The rows are refused if the copy trained with them has larger temporal-difference errors on held-out real rows, or
if the policy finds their actions much less likely than real ones.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.agents import td_errors
from o2o_diffusion.distributed import ShardedRng, shard
from o2o_diffusion.protocols import Learner, Sampler
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.schedule import GeneratedShare, Phase
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.types import GENERATED, REAL, Source, Transitions


@dataclass(frozen=True)
class Shadow:
    """Settings of the shadow test; the limits lie between rows that helped and rows that hurt (docs/generators.md)."""

    updates: Annotated[int, "updates of both copies of the learner at each refresh; 0: no shadow test", Ge(0)] = 0
    rows: Annotated[int, "held-out and generated rows per label to judge on", Ge(1)] = 1_000
    td_error: Annotated[float, "largest ratio of TD errors, with the new rows to without them", Gt(0)] = 1.2
    log_prob: Annotated[float, "largest loss of log-probability, real to generated actions, per dimension", Gt(0)] = 0.4


@dataclass(frozen=True)
class Effect:
    """The effect of new rows on a learner, and the limits.

    `td_error` is the mean absolute TD error on held-out real rows of the copy trained with the rows, relative to that
    of the copy without them. `log_prob` is the median log-probability of real actions minus that of generated ones, per
    action dimension; NaN if the policy is deterministic or the rows are made at batch time.
    """

    td_error: float
    log_prob: float
    limits: Shadow

    @property
    def accepted(self) -> bool:
        """Whether both numbers are within their limits; a ratio that is not finite is not."""
        return self.td_error <= self.limits.td_error and not self.log_prob > self.limits.log_prob

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers, for the log."""
        known = {} if math.isnan(self.log_prob) else {"log_prob_gap": self.log_prob}
        return {"td_error_ratio": self.td_error, **known}

    def __str__(self) -> str:
        likely = (
            ""
            if math.isnan(self.log_prob)
            else (
                f", and their actions are {self.log_prob:.2f} nats per dimension less likely than real ones"
                f" (limit {self.limits.log_prob})"
            )
        )
        ratio = f"with its rows, TD errors on held-out real rows are {self.td_error:.2f} times those without"
        return f"{ratio} (limit {self.limits.td_error}){likely}"


def shadow_test(
    limits: Shadow, learner: Learner, sampler: Sampler, refresher: Refresher, replay: Replay, phase: Phase
) -> Effect:
    """The effect of the rows now in `replay` on copies of `learner`, which is not changed; all processes take part."""
    rest = sampler, refresher, replay, phase
    real = judged(replay, limits.rows)
    both = [mean_td_error(trained(limits.updates, learner, *rest, generated=g), real, replay) for g in (True, False)]
    return Effect(both[0] / max(both[1], 1e-9), log_prob_gap(learner, replay, real, limits.rows), limits)


def trained(
    updates: int,
    learner: Learner,
    sampler: Sampler,
    refresher: Refresher,
    replay: Replay,
    phase: Phase,
    *,
    generated: bool,
) -> Learner:
    """A copy of `learner` after `updates`, with or without generated rows; held-out real rows have weight 0."""
    learner, sampler, rng = copy.deepcopy(learner), copy.deepcopy(sampler), ShardedRng(0, shared=False)
    held_out = is_held_out(replay)
    for _ in range(updates):
        sampler.update(replay, learner)
        draw = sampler.sample(replay, phase.shares, phase.batch_size)
        if generated:
            draw = with_generated(draw, refresher.generator.share(replay), replay, rng)
        draw = shard(draw)
        batch = replay.gather(draw)
        where = draw.rows.to(replay.device) + replay.starts[draw.pools.to(replay.device)]
        batch = batch.where(weights=batch.weights * (batch.is_generated | ~held_out[where]))
        learner.update(replay.scaled(refresher.augment(batch, replay, learner) if generated else batch))
    return learner


def with_generated(draw: Draw, share: GeneratedShare, replay: Replay, rng: ShardedRng) -> Draw:
    """`draw` with its first rows replaced by generated ones, or marked, if these are made at batch time."""
    rows, pools, sources = draw.rows.clone(), draw.pools.clone(), draw.sources.clone()
    start = 0
    for source, count in share.counts(round(share.share * len(draw))).items():
        part, size = slice(start, start + count), len(replay.pools[source])
        if share.at_batch_time:
            sources[part] = pools[part] + int(source - source.real)
        elif size:
            rows[part] = rng.integers(size, count).to(rows.device)
            pools[part] = sources[part] = int(source)
        start += count
    return replace(draw, rows=rows, pools=pools, sources=sources)


def is_held_out(replay: Replay) -> Tensor:
    """[rows of the replay's memory] bool, the held-out real rows."""
    held_out = torch.zeros(len(replay.memory["rewards"]), dtype=torch.bool, device=replay.device)
    for source in REAL:
        pool = replay.pools[source]
        held_out[pool.start : pool.start + len(pool)] = pool.held_out
    return held_out


def judged(replay: Replay, rows: int) -> dict[Source, Transitions]:
    """At most `rows` evenly spaced held-out rows of each label; other real rows of a label that has none held out."""
    pools = {source: replay.pools[source] for source in REAL if len(replay.pools[source])}
    held_out = {source: pool.held_out.nonzero()[:, 0] for source, pool in pools.items()}
    chosen = {s: rows_ if len(rows_) else torch.arange(len(pools[s])) for s, rows_ in held_out.items()}
    return {source: pools[source][evenly(numbers, rows)] for source, numbers in chosen.items()}


def mean_td_error(learner: Learner, real: Mapping[Source, Transitions], replay: Replay) -> float:
    """Mean absolute TD error, the same on every process."""
    return float(torch.cat([td_errors(learner, batch, replay) for batch in real.values()]).mean())


@torch.no_grad()
def log_prob_gap(learner: Learner, replay: Replay, real: Mapping[Source, Transitions], rows: int) -> float:
    """Median log-probability of real actions minus that of generated ones, per dimension, the worst of the labels."""
    gaps = []
    for source in GENERATED:
        pool, held_out = replay.pools[source], real.get(source.real)
        if len(pool) and held_out is not None:
            batches = held_out, pool[evenly(torch.arange(len(pool), device=replay.device), rows)]
            try:
                known, new = (learner.log_prob(batch.observations, batch.actions).median() for batch in batches)
            except TypeError:  # a deterministic policy has no density
                continue
            gaps.append(float(known - new) / replay.spec.action_dim)
    return max(gaps, default=math.nan)


def evenly(numbers: Tensor, size: int) -> Tensor:
    """At most `size` evenly spaced entries of `numbers`."""
    return numbers[torch.linspace(0, len(numbers) - 1, min(size, len(numbers)), device=numbers.device).long()]
