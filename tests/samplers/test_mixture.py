import pytest
import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import GeneratedShare, Shares
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(1, 1)
CFDG = Shares(offline=0.5, online=0.5).with_generated(GeneratedShare(share=1 / 3, online=0.8))


def rows(count: int) -> Transitions:
    zeros = torch.zeros(count)
    return Transitions.create(torch.randn(count, 1), torch.zeros(count, 1), zeros, torch.zeros(count, 1), zeros)


def replay(**sizes: int) -> Replay:
    counts = {source: sizes.get(source.name.lower(), 0) for source in Source}
    store = Replay(SPEC, counts)
    for source, count in counts.items():
        if count:
            store.pools[source].append(rows(count))
    return store


def draw(sampler: Mixture, store: Replay, batch_size: int = 240, batches: int = 1) -> list[int]:
    drawn = torch.cat([sampler.sample(store, batch_size).sources for _ in range(batches)])
    return torch.bincount(drawn, minlength=4).tolist()


def mixture(shares: Shares, **config) -> Mixture:
    sampler = Mixture(Mixture.Config(**config), SPEC, seed=0)
    sampler.begin_phase(shares)
    return sampler


def test_the_papers_shares():
    assert CFDG.offline == CFDG.online == pytest.approx(1 / 3)
    assert (CFDG.generated_online, CFDG.generated_offline) == (pytest.approx(0.8 / 3), pytest.approx(0.2 / 3))
    full = replay(offline=10, online=10, generated_offline=10, generated_online=10)
    assert draw(mixture(CFDG, ramp=0), full) == [80, 80, 16, 64]


def test_a_generator_that_replaces_offline_rows():
    shares = Shares(offline=0.5, online=0.5).with_generated(GeneratedShare(0.2, 1.0, replaces_offline=True))
    assert (shares.offline, shares.online, shares.generated_online) == (0.0, 0.8, 0.2)
    full = replay(offline=10, online=25, generated_online=10)
    assert draw(mixture(shares, ramp=0), full) == [0, 192, 0, 48]
    assert draw(mixture(shares, ramp=100), full) == [180, 48, 0, 12]  # few online rows: offline ones fill the batch


def test_an_empty_pool_gives_its_share_to_the_others():
    assert draw(mixture(CFDG, ramp=0), replay(offline=10, online=10)) == [120, 120, 0, 0]
    assert draw(mixture(CFDG, ramp=0), replay(online=10)) == [0, 240, 0, 0]
    assert draw(mixture(Shares(online=1.0)), replay(offline=10)) == [240, 0, 0, 0]
    with pytest.raises(ValueError, match="neither offline nor online"):
        draw(mixture(CFDG), replay())


def test_online_shares_grow_with_the_online_pool_and_the_rest_is_offline():
    store = replay(offline=10, online=25)
    assert draw(mixture(Shares(offline=0.5, online=0.5), ramp=100), store, 1000) == [875, 125, 0, 0]


def test_a_learner_without_offline_rows_never_gets_any():
    assert draw(mixture(Shares(online=1.0), ramp=100), replay(offline=10, online=1)) == [0, 240, 0, 0]


def test_settings_win_over_what_is_asked():
    sampler = mixture(CFDG, ramp=0, offline=0.0, generated_offline=0.0, online=0.5, generated_online=0.5)
    assert draw(sampler, replay(offline=9, online=9, generated_online=9)) == [0, 120, 0, 120]


def test_a_share_that_is_set_is_kept_and_the_others_divide_the_rest():
    full = replay(offline=9, online=9, generated_offline=9, generated_online=9)
    assert draw(mixture(CFDG, ramp=0, offline=0.5), full) == [120, 60, 12, 48]
    with pytest.raises(InputError, match="must not be negative"):
        mixture(CFDG, offline=0.7, online=0.5)


def test_shares_below_one_row_are_exact_over_time():
    sampler = mixture(Shares(offline=0.999, online=0.001), ramp=0)
    assert draw(sampler, replay(offline=5, online=5), batch_size=10, batches=1000) == [9990, 10, 0, 0]


def test_whole_batches_come_from_one_pool():
    sampler = mixture(Shares(offline=0.5, online=0.5, whole_batches=True), ramp=0)
    store = replay(offline=5, online=5)
    batches = [draw(sampler, store, 8) for _ in range(200)]
    assert all(max(counts) == 8 for counts in batches)
    assert 70 < sum(counts[0] == 8 for counts in batches) < 130


def test_rows_are_shuffled_and_uniform_and_the_state_repeats_them():
    sampler, store = mixture(Shares(offline=0.5, online=0.5), ramp=0), replay(offline=4, online=4)
    state = sampler.state_dict()
    batch = sampler.sample(store, 4000)
    assert 0.4 < (batch.sources[:400] == Source.ONLINE).float().mean() < 0.6
    assert torch.bincount(batch.rows, minlength=4).min() > 850
    sampler.load_state_dict(state)
    assert torch.equal(sampler.sample(store, 4000).rows, batch.rows)
