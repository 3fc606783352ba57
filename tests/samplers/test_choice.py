import pytest
import torch
from builders import SPEC, make_replay, raw_batch
from omegaconf import OmegaConf

from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.choice import RecentOrUnion
from o2o_diffusion.schedule import GeneratedShare, Shares
from o2o_diffusion.settings import CONFIGS, locate
from o2o_diffusion.types import Source

HALVES = Shares(offline=0.5, online=0.5)


def choice(seed=0, **config):
    defaults = {"recent": 20, "gate": 10, "ramp": 0}
    return RecentOrUnion(RecentOrUnion.Config(**(defaults | config)), SPEC, seed=seed)


def test_frequencies_of_whole_batches():
    replay, sampler = make_replay(offline=50, online=50), choice(probability=0.1)
    draws = [sampler.sample(replay, HALVES, 32) for _ in range(2000)]
    recent = [draw for draw in draws if draw.regularization.sum() == 0]
    assert all(draw.regularization.unique().numel() == 1 for draw in draws)
    assert abs(len(recent) / 2000 - 0.1) < 0.02
    assert all((draw.sources == Source.ONLINE).all() for draw in recent)


def test_recent_rows_are_the_newest_of_the_ring_and_uniform():
    replay = Replay(SPEC, {Source.OFFLINE: 5, Source.ONLINE: 50})
    replay.offline.append(raw_batch(5))
    for _ in range(4):
        replay.online.append(raw_batch(18))  # 72 rows: those in 2 to 21 are the newest 20
    draw = choice(probability=1.0).sample(replay, HALVES, 20_000)
    counts = torch.bincount(draw.rows, minlength=50)
    assert counts[2:22].sum() == 20_000 and counts[2:22].min() > 800 and not draw.regularization.any()


def test_the_gate_opens_above_its_number_of_rows():
    sampler = choice(probability=1.0)
    for online, recent in ((0, False), (1, False), (10, False), (11, True)):
        draw = sampler.sample(make_replay(offline=30, online=online), HALVES, 8)
        assert draw.regularization.eq(0 if recent else 1).all()


def test_the_union_is_uniform_over_offline_and_online_rows():
    replay = make_replay(offline=30, online=10)
    draw = choice(probability=0.0).sample(replay, HALVES, 40_000)
    offline = draw.sources == Source.OFFLINE
    assert abs(offline.float().mean() - 0.75) < 0.01 and draw.regularization.all()
    counts = torch.cat([torch.bincount(draw.rows[offline], minlength=30), torch.bincount(draw.rows[~offline])])
    assert len(counts) == 40 and counts.min() > 850 and counts.max() < 1150


def test_the_probability_is_the_online_share_asked_for():
    replay = make_replay(offline=50, online=50)
    for share in (0.0, 0.1, 1.0):
        sampler, shares = choice(), Shares(offline=1 - share, online=share, whole_batches=True)
        recent = sum(not sampler.sample(replay, shares, 4).regularization.any() for _ in range(1000))
        assert abs(recent / 1000 - share) < 0.03


def test_a_pool_without_a_share_is_never_drawn_from():
    replay = make_replay(offline=50, online=50)
    pretrain = choice(probability=1.0).sample(replay, Shares(offline=1.0), 64)
    assert (pretrain.sources == Source.OFFLINE).all() and pretrain.regularization.all()
    online = choice(probability=0.0).sample(replay, Shares(online=1.0), 64)
    assert (online.sources == Source.ONLINE).all()


def test_generated_rows_keep_their_share_and_belong_to_what_was_chosen():
    shares = HALVES.with_generated(GeneratedShare(share=1 / 3, online=0.8))
    replay = make_replay(offline=50, online=50, generated_offline=10, generated_online=10)
    sampler = choice()
    draws = [sampler.sample(replay, shares, 240) for _ in range(100)]
    for draw in draws:
        counts = torch.bincount(draw.sources, minlength=4).tolist()
        recent = not draw.regularization.any()
        assert counts[2:] == [16, 64] and sum(counts[:2]) == 160
        assert (counts[0] == 0) is recent and draw.regularization.unique().numel() == 1
    assert 30 < sum(not draw.regularization.any() for draw in draws) < 70


def test_shares_below_one_row_are_exact_over_time():
    shares = HALVES.with_generated(GeneratedShare(share=0.01, online=1.0))
    sampler, replay = choice(), make_replay(offline=50, online=50, generated_online=5)
    drawn = torch.cat([sampler.sample(replay, shares, 10).sources for _ in range(1000)])
    assert (drawn == Source.GENERATED_ONLINE).sum() == 100


def test_every_process_draws_the_same_and_the_state_repeats_it():
    one, other, replay = choice(seed=3), choice(seed=3), make_replay(offline=50, online=50)
    assert torch.equal(one.sample(replay, HALVES, 64).rows, other.sample(replay, HALVES, 64).rows)
    state = one.state_dict()
    draws = [one.sample(replay, HALVES, 64) for _ in range(5)]
    restored = choice(seed=4)
    restored.load_state_dict(state)
    for draw in draws:
        again = restored.sample(replay, HALVES, 64)
        assert torch.equal(again.rows, draw.rows) and torch.equal(again.regularization, draw.regularization)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="'gate' is 20, expected less than 'recent', 20"):
        choice(gate=20)


@pytest.mark.parametrize(("name", "probability"), [("choice", None), ("union", 0.0)])
def test_its_files(name, probability):
    settings = OmegaConf.load(CONFIGS / "sampler" / f"{name}.yaml")
    assert locate(settings.pop("target")) is RecentOrUnion
    assert OmegaConf.merge(OmegaConf.structured(RecentOrUnion.Config), settings).probability == probability


def test_a_fixed_random_part_of_the_offline_rows_is_kept_once_online_rows_are_drawn():
    replay, settings = make_replay(offline=100, online=10), {"offline_fraction": 0.2, "min_offline": 5}
    kept = []
    for sampler in (
        choice(probability=0.0, **settings),
        choice(probability=0.0, **settings),
        choice(1, probability=0.0, **settings),
    ):
        draw = sampler.sample(replay, HALVES, 3_000)
        offline = draw.sources == Source.OFFLINE
        assert abs(offline.float().mean() - 20 / 30) < 0.03
        kept.append(set(draw.rows[offline].tolist()))
        assert sampler.sample(replay, Shares(offline=1.0), 3_000).rows.unique().numel() == 100  # in pretraining
    assert kept[0] == kept[1] != kept[2] and all(len(rows) == 20 for rows in kept) and max(kept[0]) > 50
    many = choice(probability=0.0, offline_fraction=0.2, min_offline=60).sample(replay, HALVES, 3_000)
    assert many.rows[many.sources == Source.OFFLINE].unique().numel() == 60
