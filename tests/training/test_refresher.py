"""When a refresh is due, and what becomes of its rows."""

from dataclasses import dataclass, field

import pytest
import torch
from builders import SPEC, make_replay, raw_batch

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Gate, GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.types import Source

AGENT = NoAgent()
STRICT = Gate(rows=50, outside_range=0.5)


@dataclass
class Far(Stateful):
    """Rows that lie far from the real ones, in a pool or made at batch time."""

    refresh: Refresh
    at_batch_time: bool = False
    asked: list[int] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)

    def share(self, replay):
        return GeneratedShare(share=0.5, at_batch_time=self.at_batch_time)

    def next_refresh(self, replay):
        return self.refresh

    def begin_refresh(self, replay, agent):
        self.seen.add(len(replay.offline))

    def update(self, replay, agent):
        self.seen.add(len(replay.offline))
        return {}

    def sample(self, num_samples, *, source, replay, agent):
        self.seen.add(len(replay.offline))
        self.asked.append(num_samples)
        return raw_batch(num_samples, SPEC, center=50.0, source=source)

    def augment(self, batch, *, replay, agent):
        return batch.where(observations=batch.observations + 50)


def pools(offline: int = 200, online: int = 200) -> Replay:
    return make_replay(offline=offline, online=online, generated_online=200)


def due(refresh: Refresh, offline: int, online: int, steps: int, begun: int | None = None) -> bool:
    """Whether a refresh is due at `steps`; the one before, if any, began at step `begun`."""
    refresher, replay = Refresher(Far(refresh)), pools(offline, online)
    if begun is not None:
        refresher.begin(replay, AGENT, begun)
    return refresher.due(replay, steps)


def test_the_first_refresh_waits_for_online_rows_and_later_ones_for_steps():
    refresh = Refresh(updates=2, rows=20, first=10, interval=5)
    assert [due(refresh, 50, rows, 100) for rows in (9, 10, 11)] == [False, True, True]
    assert [due(refresh, 50, 20, steps, begun=12) for steps in (12, 16, 17, 30)] == [False, False, True, True]


def test_interval_0_is_a_single_refresh_and_first_0_needs_only_real_rows():
    once = Refresh(rows=20, first=0, interval=0)
    assert due(once, 50, 0, 0) and not due(once, 0, 0, 0)
    assert not any(due(once, 50, 20, steps, begun=0) for steps in (0, 1, 1_000))
    assert not due(Refresh(), 50, 50, 1_000)


@pytest.mark.parametrize("at_batch_time", [False, True])
def test_refused_rows_are_nowhere_and_accepted_ones_are_used(at_batch_time):
    rows = 0 if at_batch_time else 200
    generator, replay = Far(Refresh(updates=2, rows=rows, gate=STRICT), at_batch_time), pools()
    replay.pools[Source.GENERATED_ONLINE].clear()
    refresher, batch = Refresher(generator), replay.online.all()
    assert not refresher.is_active(replay) and refresher.augment(batch, replay, AGENT) is batch
    verdict = refresher.refresh(replay, AGENT)
    assert not verdict.accepted and (refresher.count, refresher.refused) == (1, 1)
    assert generator.asked == [verdict.asked_rows] == [50 if at_batch_time else 200]
    assert replay.num_generated == 0 and not refresher.is_active(replay)
    assert refresher.augment(batch, replay, AGENT) is batch
    generator.refresh = Refresh(updates=2, rows=rows)  # an open gate
    assert refresher.refresh(replay, AGENT).accepted and (refresher.count, refresher.refused) == (2, 1)
    assert replay.num_generated == rows and refresher.is_active(replay)
    made = refresher.augment(batch, replay, AGENT).observations  # a pool's rows are drawn, not made
    assert torch.equal(made, batch.observations + 50 * at_batch_time)


def test_a_refusal_removes_the_rows_of_the_refresh_before():
    generator, replay = Far(Refresh(rows=200)), pools()
    refresher = Refresher(generator)
    assert refresher.refresh(replay, AGENT).accepted and replay.num_generated == 200
    generator.refresh = Refresh(rows=200, gate=STRICT)
    assert not refresher.redraw(replay, AGENT).accepted and replay.num_generated == 0


def test_rows_at_batch_time_without_refreshes_are_always_made():
    refresher = Refresher(Far(Refresh(), at_batch_time=True))
    assert refresher.is_active(pools()) and not Refresher(Far(Refresh())).is_active(Replay(SPEC))


def test_a_generator_never_sees_held_out_rows():
    generator, replay = Far(Refresh(updates=2, rows=20)), pools(offline=1_000)
    assert int(replay.offline.held_out.sum()) == 100
    refresher = Refresher(generator)
    refresher.refresh(replay, AGENT)
    assert generator.seen == {900} and not refresher.training_rows
    replay.offline.clear()  # the next refresh is on the rows there are then
    refresher.refresh(replay, AGENT)
    assert generator.seen == {900, 0}
