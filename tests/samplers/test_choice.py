import pytest
import torch
from omegaconf import OmegaConf
from test_mixture import SPEC, replay, rows

from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.choice import Choice
from o2o_diffusion.schedule import GeneratedShare, Shares
from o2o_diffusion.settings import CONFIGS, locate
from o2o_diffusion.types import Source

HALVES = Shares(offline=0.5, online=0.5)


def choice(shares=HALVES, seed=0, **config):
    sampler = Choice(Choice.Config(**({"recent": 20, "gate": 10, "ramp": 0} | config)), SPEC, seed=seed)
    sampler.begin_phase(shares)
    return sampler


def test_frequencies_of_whole_batches():
    store, sampler = replay(offline=50, online=50), choice(probability=0.1)
    batches = [sampler.sample(store, 32) for _ in range(2000)]
    recent = [batch for batch in batches if batch.regularization.sum() == 0]
    assert all(batch.regularization.unique().numel() == 1 for batch in batches)
    assert abs(len(recent) / 2000 - 0.1) < 0.02
    assert all((batch.sources == Source.ONLINE).all() for batch in recent)


def test_recent_rows_are_the_newest_of_the_ring_and_uniform():
    store = Replay(SPEC, {Source.OFFLINE: 5, Source.ONLINE: 50})
    store.offline.append(rows(5))
    for _ in range(4):
        store.online.append(rows(18))  # 72 rows: those in 2 to 21 are the newest 20
    batch = choice(probability=1.0).sample(store, 20_000)
    counts = torch.bincount(batch.rows, minlength=50)
    assert counts[2:22].sum() == 20_000 and counts[2:22].min() > 800 and not batch.regularization.any()


def test_the_gate_opens_above_its_number_of_rows():
    sampler = choice(probability=1.0)
    for online, recent in ((0, False), (1, False), (10, False), (11, True)):
        batch = sampler.sample(replay(offline=30, online=online), 8)
        assert batch.regularization.eq(0 if recent else 1).all()


def test_the_union_is_uniform_over_offline_and_online_rows():
    store = replay(offline=30, online=10)
    batch = choice(probability=0.0).sample(store, 40_000)
    offline = batch.sources == Source.OFFLINE
    assert abs(offline.float().mean() - 0.75) < 0.01 and batch.regularization.all()
    counts = torch.cat([torch.bincount(batch.rows[offline], minlength=30), torch.bincount(batch.rows[~offline])])
    assert len(counts) == 40 and counts.min() > 850 and counts.max() < 1150


def test_the_probability_is_the_online_share_asked_for():
    store = replay(offline=50, online=50)
    for share in (0.0, 0.1, 1.0):
        sampler = choice(Shares(offline=1 - share, online=share, whole_batches=True))
        recent = sum(not sampler.sample(store, 4).regularization.any() for _ in range(1000))
        assert abs(recent / 1000 - share) < 0.03


def test_what_a_learner_does_not_want_it_never_gets():
    store = replay(offline=50, online=50)
    pretrain = choice(Shares(offline=1.0), probability=1.0).sample(store, 64)
    assert (pretrain.sources == Source.OFFLINE).all() and pretrain.regularization.all()
    assert (choice(Shares(online=1.0), probability=0.0).sample(store, 64).sources == Source.ONLINE).all()


def test_generated_rows_keep_their_share_and_belong_to_what_was_chosen():
    shares = HALVES.with_generated(GeneratedShare(share=1 / 3, online=0.8))
    store = replay(offline=50, online=50, generated_offline=10, generated_online=10)
    sampler = choice(shares)
    batches = [sampler.sample(store, 240) for _ in range(100)]
    for batch in batches:
        counts = torch.bincount(batch.sources, minlength=4).tolist()
        recent = not batch.regularization.any()
        assert counts[2:] == [16, 64] and sum(counts[:2]) == 160
        assert (counts[0] == 0) is recent and batch.regularization.unique().numel() == 1
    assert 30 < sum(not batch.regularization.any() for batch in batches) < 70


def test_shares_below_one_row_are_exact_over_time():
    shares = HALVES.with_generated(GeneratedShare(share=0.01, online=1.0))
    sampler, store = choice(shares), replay(offline=50, online=50, generated_online=5)
    drawn = torch.cat([sampler.sample(store, 10).sources for _ in range(1000)])
    assert (drawn == Source.GENERATED_ONLINE).sum() == 100


def test_every_process_draws_the_same_and_the_state_repeats_it():
    one, other, store = choice(seed=3), choice(seed=3), replay(offline=50, online=50)
    assert torch.equal(one.sample(store, 64).rows, other.sample(store, 64).rows)
    state = one.state_dict()
    batches = [one.sample(store, 64) for _ in range(5)]
    restored = choice(seed=4)
    restored.load_state_dict(state)
    for batch in batches:
        again = restored.sample(store, 64)
        assert torch.equal(again.rows, batch.rows) and torch.equal(again.regularization, batch.regularization)


def test_impossible_settings_are_named():
    with pytest.raises(InputError, match="gate' is 20, expected 0 to below recent=20"):
        choice(gate=20)
    with pytest.raises(InputError, match=r"probability' is 1\.5"):
        choice(probability=1.5)


@pytest.mark.parametrize(("name", "probability"), [("choice", None), ("union", 0.0)])
def test_its_files(name, probability):
    settings = OmegaConf.load(CONFIGS / "sampler" / f"{name}.yaml")
    assert locate(settings.pop("target")) is Choice
    assert OmegaConf.merge(OmegaConf.structured(Choice.Config), settings).probability == probability
