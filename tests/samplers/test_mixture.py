import pytest
import torch
from builders import SPEC, make_replay

from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import GeneratedShare, Shares
from o2o_diffusion.types import Source

HALVES = Shares(offline=0.5, online=0.5)
CFDG = HALVES.with_generated(GeneratedShare(share=1 / 3, online=0.8))


def mixture(**config) -> Mixture:
    return Mixture(Mixture.Config(**config), SPEC, seed=0)


def counts(sampler: Mixture, replay: Replay, shares: Shares, batch_size: int = 240, batches: int = 1) -> list[int]:
    """Rows drawn from each source, in the order of `Source`."""
    drawn = torch.cat([sampler.sample(replay, shares, batch_size).sources for _ in range(batches)])
    return torch.bincount(drawn, minlength=4).tolist()


def test_the_papers_shares():
    assert CFDG.offline == CFDG.online == pytest.approx(1 / 3)
    assert (CFDG.generated_online, CFDG.generated_offline) == (pytest.approx(0.8 / 3), pytest.approx(0.2 / 3))
    full = make_replay(offline=10, online=10, generated_offline=10, generated_online=10)
    assert counts(mixture(ramp=0), full, CFDG) == [80, 80, 16, 64]


def test_a_generator_that_replaces_offline_rows():
    shares = HALVES.with_generated(GeneratedShare(0.2, 1.0, replaces_offline=True))
    assert (shares.offline, shares.online, shares.generated_online) == (0.0, 0.8, 0.2)
    full = make_replay(offline=10, online=25, generated_online=10)
    assert counts(mixture(ramp=0), full, shares) == [0, 192, 0, 48]
    assert counts(mixture(ramp=100), full, shares) == [180, 48, 0, 12]  # few online rows: offline ones fill the batch


def test_one_sampler_follows_its_pools_and_shares():
    sampler, replay = mixture(ramp=100), make_replay(offline=10, online=50)
    assert counts(sampler, replay, HALVES) == [180, 60, 0, 0]
    replay.online.clear()
    assert counts(sampler, replay, HALVES) == [240, 0, 0, 0]
    assert counts(sampler, make_replay(offline=10, online=50), Shares(online=1.0, offline_fills=True))[1] == 120


def test_an_empty_pool_gives_its_share_to_the_others():
    assert counts(mixture(ramp=0), make_replay(offline=10, online=10), CFDG) == [120, 120, 0, 0]
    assert counts(mixture(ramp=0), make_replay(offline=0, online=10), CFDG) == [0, 240, 0, 0]
    assert counts(mixture(), make_replay(offline=10, online=0), Shares(online=1.0)) == [240, 0, 0, 0]
    with pytest.raises(ValueError, match="neither offline nor online"):
        counts(mixture(), make_replay(offline=0, online=0), CFDG)


def test_online_shares_grow_with_the_online_pool_and_the_rest_is_offline():
    replay = make_replay(offline=10, online=25)
    assert counts(mixture(ramp=100), replay, HALVES, batch_size=1000) == [875, 125, 0, 0]
    assert counts(mixture(ramp=10), replay, HALVES, batch_size=1000) == [500, 500, 0, 0]  # full: no more than asked for


def test_both_generated_pools_are_ramped_together_so_that_the_split_by_label_holds_from_the_start():
    replay = make_replay(offline=10, online=25, generated_offline=10, generated_online=10)
    assert counts(mixture(ramp=100), replay, CFDG, batch_size=1200) == [1000, 100, 20, 80]
    offline_label = HALVES.with_generated(GeneratedShare(share=0.5, online=0.0))
    assert counts(mixture(ramp=100), replay, offline_label, batch_size=1200) == [525, 75, 600, 0]


def test_a_learner_without_offline_rows_never_gets_any():
    assert counts(mixture(ramp=100), make_replay(offline=10, online=1), Shares(online=1.0)) == [0, 240, 0, 0]


def test_settings_win_over_the_shares_of_learner_and_generator():
    sampler = mixture(ramp=0, offline=0.0, generated_offline=0.0, online=0.5, generated_online=0.5)
    assert counts(sampler, make_replay(offline=9, online=9, generated_online=9), CFDG) == [0, 120, 0, 120]


def test_a_share_that_is_set_is_kept_and_the_others_divide_the_rest():
    full = make_replay(offline=9, online=9, generated_offline=9, generated_online=9)
    assert counts(mixture(ramp=0, offline=0.5), full, CFDG) == [120, 60, 12, 48]
    with pytest.raises(ValueError, match=r"sum to 1\.2, expected at most 1"):
        mixture(offline=0.7, online=0.5)


def test_shares_are_exact_over_time():
    replay = make_replay(offline=5, online=5, generated_offline=5, generated_online=5)
    rare = Shares(offline=0.999, online=0.001)
    assert counts(mixture(ramp=0), replay, rare, batch_size=10, batches=1000) == [9990, 10, 0, 0]
    assert counts(mixture(ramp=0), replay, CFDG, batch_size=7, batches=150) == [350, 350, 70, 280]


def test_whole_batches_come_from_one_pool():
    sampler, shares = mixture(ramp=0), Shares(offline=0.5, online=0.5, whole_batches=True)
    replay = make_replay(offline=5, online=5)
    batches = [counts(sampler, replay, shares, 8) for _ in range(200)]
    assert all(max(batch) == 8 for batch in batches)
    assert 70 < sum(batch[Source.OFFLINE] == 8 for batch in batches) < 130


def test_rows_are_shuffled_and_uniform_and_the_state_repeats_them():
    sampler, replay = mixture(ramp=0), make_replay(offline=4, online=4)
    state = sampler.state_dict()
    draw = sampler.sample(replay, HALVES, 4000)
    assert 0.4 < (draw.sources[:400] == Source.ONLINE).float().mean() < 0.6
    assert torch.bincount(draw.rows, minlength=4).min() > 850
    sampler.load_state_dict(state)
    assert torch.equal(sampler.sample(replay, HALVES, 4000).rows, draw.rows)
