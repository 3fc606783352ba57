"""The promises of every sampler, whatever its name: one file and one YAML pass untouched."""

import io
from dataclasses import fields

import pytest
import torch
from builders import LinearPolicy, build, make_replay, names, raw_batch

from o2o_diffusion import distributed
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.schedule import GeneratedShare, Shares
from o2o_diffusion.types import GENERATED, REAL, Source

HALVES = Shares(offline=0.5, online=0.5)
GENERATOR = GeneratedShare(share=0.09, online=0.7)
AT_BATCH_TIME = GeneratedShare(share=0.09, online=0.7, at_batch_time=True)
SHARES = {
    "offline": Shares(offline=1.0),
    "online": Shares(online=1.0),
    "halves": HALVES,
    "whole": Shares(offline=0.5, online=0.5, whole_batches=True),
    "generated": HALVES.with_generated(GENERATOR),
    "replaced": HALVES.with_generated(GeneratedShare(share=0.3, online=1.0, replaces_offline=True)),
    "generated only": HALVES.with_generated(GeneratedShare(share=1.0, online=0.5)),
    "batch time": HALVES.with_generated(AT_BATCH_TIME),
}
REPLAYS = {
    "full": {"generated_offline": 30, "generated_online": 30},
    "no generated rows": {},
    "no offline rows": {"offline": 0, "generated_online": 30},
    "no online rows": {"online": 0, "generated_offline": 30},
    "one online row": {"online": 1, "generated_online": 1},
}


@pytest.fixture(params=names("sampler"), ids=lambda path: path.stem)
def make(request):
    """Builds the sampler of a file, from a seed."""
    return lambda seed=0: build("sampler", request.param, seed=seed)


def run(sampler, replay: Replay, shares: Shares, steps: int, *, batch_size: int = 10, first: int | None = None):
    """`steps` draws, as the loop makes them; with `first`, after an online row numbered `first`, `first` + 1, ..."""
    for step in range(steps):
        if first is not None:
            replay.online.append(raw_batch(1, seed=first + step))
        sampler.update(replay, LinearPolicy())
        yield sampler.sample(replay, shares, batch_size)


def equal(ones: list[Draw], others: list[Draw]) -> bool:
    """Whether all draws are the same, bit for bit."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for a, b in zip(ones, others, strict=True) for f in fields(Draw)]
    return all(torch.equal(one, other) for one, other in pairs)


def totals(draws, field: str = "sources") -> list[int]:
    """Rows of each source, over all draws."""
    return torch.bincount(torch.cat([getattr(draw, field) for draw in draws]), minlength=len(Source)).tolist()


@pytest.mark.parametrize("sizes", REPLAYS.values(), ids=REPLAYS)
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_a_draw_has_batch_size_rows_within_their_pools(make, shares, sizes):
    sampler, replay = make(), make_replay(**sizes)
    for batch_size in (1, 7, 32):
        for draw in run(sampler, replay, shares, 3, batch_size=batch_size):
            assert all(getattr(draw, field.name).shape == (batch_size,) for field in fields(Draw))
            held = torch.tensor([len(replay.pools[source]) for source in Source])[draw.pools]
            assert ((draw.rows >= 0) & (draw.rows < held)).all()  # so that no row is of an empty pool
            for factor in (draw.weights, draw.regularization):
                assert (factor.isfinite() & (factor >= 0)).all()
            if not shares.at_batch_time:
                assert torch.equal(draw.sources, draw.pools)
            batch = replay.gather(draw)
            assert len(batch) == batch_size and torch.equal(batch.sources, draw.sources)


def test_generated_shares_are_exact_over_time(make):
    shares, steps, batch_size = SHARES["generated"], 200, 10
    found = totals(run(make(), make_replay(generated_offline=30, generated_online=30), shares, steps))
    for source in GENERATED:
        assert abs(found[source] - steps * batch_size * shares.of(source)) <= 1
    assert sum(found) == steps * batch_size


def test_an_empty_generated_pool_leaves_its_share_to_real_rows(make):
    found = totals(run(make(), make_replay(), SHARES["generated"], 20))
    assert sum(found[source] for source in REAL) == sum(found) == 200


def test_rows_generated_at_batch_time_begin_as_real_ones_of_their_label_with_the_same_shares(make):
    shares, steps, batch_size = SHARES["batch time"], 200, 10
    draws = list(run(make(), make_replay(), shares, steps))
    assert all(torch.equal(draw.pools, draw.sources % 2) for draw in draws)
    found = totals(draws)
    for source in GENERATED:
        assert abs(found[source] - steps * batch_size * shares.of(source)) <= 1


@pytest.mark.parametrize("empty", ["offline", "online"])
def test_no_row_is_marked_where_the_real_pool_of_its_label_is_empty(make, empty):
    draws = list(run(make(), make_replay(**{empty: 0}), SHARES["batch time"], 50))
    generated = Source[empty.upper()].generated
    assert totals(draws)[generated] == 0 and totals(draws, "pools")[generated.real] == 0


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_a_draw_depends_on_the_seed_only(make, shares):
    drawn = []
    for sampler_seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        replay = make_replay(generated_offline=30, generated_online=30)
        drawn.append(list(run(make(sampler_seed), replay, shares, 5)))
    assert equal(drawn[0], drawn[1]) and not equal(drawn[0], drawn[2])


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("steps", [0, 1, 45])
def test_a_restored_sampler_repeats_the_draws_bit_for_bit(make, shares, steps):
    sampler, replay = make(), make_replay(generated_offline=30, generated_online=30)
    for _ in run(sampler, replay, shares, steps, first=0):
        pass
    file = io.BytesIO()
    torch.save([sampler.state_dict(), replay.state_dict()], file)
    expected = list(run(sampler, replay, shares, 45, first=steps))
    again, other = make(seed=1), make_replay(generated_offline=30, generated_online=30)
    states = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert equal(list(run(again, other, shares, 45, first=steps)), expected)


def test_the_state_of_another_component_is_refused(make):
    with pytest.raises(ValueError):
        make().load_state_dict({"something": 1})


def test_every_process_makes_the_same_draws(make, monkeypatch):
    draws = []
    for number in (1, 2):
        monkeypatch.setattr(distributed, "num_processes", lambda number=number: number)
        monkeypatch.setattr(distributed, "rank", lambda number=number: number - 1)
        monkeypatch.setattr(distributed.dist, "broadcast", lambda tensor, src: None)
        monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor, number=number: tensor.mul_(number))
        draws.append(list(run(make(), make_replay(generated_offline=30, generated_online=30), SHARES["generated"], 5)))
    assert equal(*draws)
