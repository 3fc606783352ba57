from copy import deepcopy

import pytest
import torch
from test_mixture import SPEC, replay, rows

from o2o_diffusion.agents import NoAgent, td_errors
from o2o_diffusion.errors import InputError
from o2o_diffusion.samplers.prioritized import Prioritized
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import RewardTransform, Source

OFFLINE = Shares(offline=1.0)


@pytest.fixture(autouse=True)
def same_rows():
    torch.manual_seed(0)


class Critic:
    """Q(s, a) = s: the TD error is |r + discount * s' * (1 - termination) - s|."""

    def act(self, observations, *, deterministic=False):
        assert deterministic
        return torch.zeros(len(observations), 1)

    def values(self, observations, actions):
        return observations[:, 0]


def prioritized(shares=OFFLINE, seed=0, **config):
    sampler = Prioritized(Prioritized.Config(**({"ramp": 0, "refresh_interval": 1} | config)), SPEC, seed=seed)
    sampler.begin_phase(shares)
    return sampler


def sampled(sampler, store, size, agent=None):
    """One batch, as the loop draws it."""
    sampler.update(store, agent or Critic())
    return sampler.sample(store, size)


def seen(store, **config):
    """A sampler that has drawn every offline row of `store` and knows its error."""
    sampler = prioritized(**config)
    sampled(sampler, store, 40 * len(store.offline))
    sampler.update(store, Critic())
    return sampler


def errors(store):
    b = store.offline.all()
    return (b.rewards + 0.99 * b.continues * b.next_observations[:, 0] - b.observations[:, 0]).abs()


def probabilities(store, alpha=0.6, epsilon=1e-2):
    scaled = (errors(store) + epsilon) ** alpha
    return scaled / scaled.sum()


def test_probabilities_against_their_closed_form():
    store = replay(offline=20)
    batch = seen(store).sample(store, 100_000)
    found = torch.bincount(batch.rows, minlength=20) / 100_000
    torch.testing.assert_close(found, probabilities(store), atol=0.004, rtol=0)


def test_weights_against_their_closed_form():
    store = replay(offline=20)
    batch = seen(store, beta=0.4).sample(store, 1000)
    expected = (20 * probabilities(store)[batch.rows]) ** -0.4
    torch.testing.assert_close(batch.weights, expected / expected.max())
    assert batch.weights.max() == 1


def test_full_weights_make_the_mean_unbiased():
    store = replay(offline=20)
    p, target = probabilities(store), errors(store)
    torch.testing.assert_close((p * target / (20 * p)).sum(), target.mean())
    batch = seen(store, beta=1.0).sample(store, 200_000)
    assert target[batch.rows].mean() > target.mean() + 0.1  # what priorities alone would find
    weighted = (batch.weights * target[batch.rows]).sum() / batch.weights.sum()
    assert abs(weighted - target.mean()) < 0.02


def test_alpha_zero_is_uniform():
    store = replay(offline=20)
    batch = seen(store, alpha=0.0).sample(store, 1000)
    assert batch.weights.eq(1).all() and torch.bincount(batch.rows, minlength=20).min() > 20


def test_errors_are_on_the_learners_scale_of_rewards():
    store = replay(offline=20)
    store.offline.fields["rewards"].normal_(generator=torch.Generator().manual_seed(0))
    store.transform = RewardTransform(scale=10.0, bias=-1.0)
    b = store.offline.all()
    expected = (10 * b.rewards - 1 + 0.99 * b.continues * b.next_observations[:, 0] - b.observations[:, 0]).abs()
    torch.testing.assert_close(td_errors(Critic(), b, store), expected)


def test_rows_never_drawn_count_as_the_largest_error_seen():
    store = replay(offline=20)
    sampler = prioritized()
    first = sampled(sampler, store, 4)
    sampler.update(store, Critic())
    batch = sampler.sample(store, 100_000)
    largest = errors(store)[first.rows].max() + 1e-2
    scaled = torch.full((20,), float(largest))
    scaled[first.rows] = errors(store)[first.rows] + 1e-2
    scaled = scaled**0.6
    found = torch.bincount(batch.rows, minlength=20) / 100_000
    torch.testing.assert_close(found, scaled / scaled.sum(), atol=0.005, rtol=0)


def test_rows_written_over_old_ones_are_new():
    store = replay(online=20)
    sampler = prioritized(Shares(online=1.0))
    sampled(sampler, store, 2000)
    sampler.update(store, Critic())
    assert sampler.tensors["priorities"][:20].isfinite().all()
    store.online.append(rows(3))
    sampler.tensors["drawn"] = torch.empty(2, 0, dtype=torch.int64)
    sampler.update(store, Critic())
    assert sampler.tensors["priorities"].isinf().tolist() == [True] * 3 + [False] * 17


def test_shares_of_the_pools_stay_and_generated_rows_are_uniform():
    shares = Shares(offline=0.25, online=0.5, generated_online=0.25)
    store = replay(offline=20, online=30, generated_online=10)
    sampler = prioritized(shares, beta=1.0)
    for _ in range(20):
        batch = sampled(sampler, store, 240)
        assert torch.bincount(batch.sources, minlength=4).tolist() == [60, 120, 0, 60]
    generated = batch.sources == Source.GENERATED_ONLINE
    assert batch.weights[generated].unique().numel() == 1
    assert sampler.tensors["priorities"][50:].isinf().all()


def test_whole_batches_come_from_one_pool():
    sampler = prioritized(Shares(offline=0.5, online=0.5, whole_batches=True))
    store = replay(offline=5, online=5)
    chosen = [sampled(sampler, store, 8).sources.unique().tolist() for _ in range(100)]
    assert sorted(set(map(tuple, chosen))) == [(0,), (1,)]


def test_the_table_is_made_at_its_interval_and_when_a_pool_appears():
    store, sampler = replay(offline=20, online=20), prioritized(Shares(offline=0.5, online=0.5), refresh_interval=3)
    store.online.clear()
    tables = []
    for step in range(5):
        if step == 4:
            store.online.append(rows(1))
        sampled(sampler, store, 16)
        tables.append(sampler.tensors["table"])
    assert tables[0] is tables[1] is tables[2] and tables[3] is not tables[2] and tables[4] is not tables[3]


def test_nothing_is_asked_of_an_agent_before_the_first_draw():
    assert prioritized().update(replay(offline=5), NoAgent()) == {}


def test_the_state_repeats_draws_between_two_tables():
    store, sampler = replay(offline=20, online=20), prioritized(Shares(offline=0.5, online=0.5), refresh_interval=4)
    for _ in range(6):
        sampled(sampler, store, 16)
    restored = prioritized(Shares(offline=0.5, online=0.5), seed=1, refresh_interval=4)
    restored.load_state_dict(deepcopy(sampler.state_dict()))
    for _ in range(6):
        one, other = sampled(sampler, store, 16), sampled(restored, store, 16)
        assert torch.equal(one.rows, other.rows) and torch.equal(one.weights, other.weights)


def test_impossible_settings_are_named():
    with pytest.raises(InputError, match="expected at least 1 and above 0"):
        prioritized(refresh_interval=0)
