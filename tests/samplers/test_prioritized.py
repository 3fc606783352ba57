from copy import deepcopy

import torch
from builders import SPEC, make_replay, raw_batch

from o2o_diffusion.agents import NoAgent, td_errors
from o2o_diffusion.samplers.prioritized import Prioritized
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import RewardTransform, Source

OFFLINE = Shares(offline=1.0)
ONLINE = Shares(online=1.0)
HALVES = Shares(offline=0.5, online=0.5)


class Critic:
    """Q(s, a) = s: the TD error is |r + discount * s' * (1 - termination) - s|."""

    def act(self, observations, *, deterministic=False, rng=None):
        assert deterministic
        return torch.zeros(len(observations), 1)

    def values(self, observations, actions):
        return observations[:, 0]


def prioritized(seed=0, **config):
    return Prioritized(Prioritized.Config(**({"ramp": 0, "refresh_interval": 1} | config)), SPEC, seed=seed)


def sampled(sampler, replay, size, shares=OFFLINE, agent=None):
    """One draw, as the loop makes it."""
    sampler.update(replay, agent or Critic())
    return sampler.sample(replay, shares, size)


def seen(replay, **config):
    """A sampler that has drawn every offline row of `replay` and knows its error."""
    sampler = prioritized(**config)
    sampled(sampler, replay, 40 * len(replay.offline))
    sampler.update(replay, Critic())
    return sampler


def errors(replay):
    b = replay.offline.all()
    return (b.rewards + 0.99 * (1 - b.terminations) * b.next_observations[:, 0] - b.observations[:, 0]).abs()


def probabilities(replay, alpha=0.6, epsilon=1e-2):
    scaled = (errors(replay) + epsilon) ** alpha
    return scaled / scaled.sum()


def test_probabilities_against_their_closed_form():
    replay = make_replay(offline=20, online=0)
    draw = seen(replay).sample(replay, OFFLINE, 100_000)
    found = torch.bincount(draw.rows, minlength=20) / 100_000
    torch.testing.assert_close(found, probabilities(replay), atol=0.004, rtol=0)


def test_weights_against_their_closed_form():
    replay = make_replay(offline=20, online=0)
    draw = seen(replay, beta=0.4).sample(replay, OFFLINE, 1000)
    expected = (20 * probabilities(replay)[draw.rows]) ** -0.4
    torch.testing.assert_close(draw.weights, expected / expected.max())
    assert draw.weights.max() == 1


def test_full_weights_make_the_mean_unbiased():
    replay = make_replay(offline=20, online=0)
    p, target = probabilities(replay), errors(replay)
    torch.testing.assert_close((p * target / (20 * p)).sum(), target.mean())
    draw = seen(replay, beta=1.0).sample(replay, OFFLINE, 200_000)
    assert target[draw.rows].mean() > target.mean() + 0.1  # what priorities alone would find
    weighted = (draw.weights * target[draw.rows]).sum() / draw.weights.sum()
    assert abs(weighted - target.mean()) < 0.02


def test_alpha_zero_is_uniform():
    replay = make_replay(offline=20, online=0)
    draw = seen(replay, alpha=0.0).sample(replay, OFFLINE, 1000)
    assert draw.weights.eq(1).all() and torch.bincount(draw.rows, minlength=20).min() > 20


def test_errors_are_on_the_learners_scale_of_rewards():
    replay = make_replay(offline=20, online=0, transform=RewardTransform(scale=10.0, bias=-1.0))
    b = replay.offline.all()
    next_values = 0.99 * (1 - b.terminations) * b.next_observations[:, 0]
    expected = (10 * b.rewards - 1 + next_values - b.observations[:, 0]).abs()
    torch.testing.assert_close(td_errors(Critic(), b, replay), expected)


def test_rows_never_drawn_count_as_the_largest_error_seen():
    replay = make_replay(offline=20, online=0)
    sampler = prioritized()
    first = sampled(sampler, replay, 4)
    sampler.update(replay, Critic())
    draw = sampler.sample(replay, OFFLINE, 100_000)
    largest = errors(replay)[first.rows].max() + 1e-2
    scaled = torch.full((20,), float(largest))
    scaled[first.rows] = errors(replay)[first.rows] + 1e-2
    scaled = scaled**0.6
    found = torch.bincount(draw.rows, minlength=20) / 100_000
    torch.testing.assert_close(found, scaled / scaled.sum(), atol=0.005, rtol=0)


def test_rows_written_over_old_ones_are_new():
    replay = make_replay(offline=0, online=20)
    sampler = prioritized()
    sampled(sampler, replay, 2000, ONLINE)
    sampler.update(replay, Critic())
    assert sampler.tensors["priorities"][:20].isfinite().all()
    replay.online.append(raw_batch(3))
    sampler.tensors["drawn"] = torch.empty(2, 0, dtype=torch.int64)
    sampler.update(replay, Critic())
    assert sampler.tensors["priorities"].isinf().tolist() == [True] * 3 + [False] * 17


def test_shares_of_the_pools_stay_and_generated_rows_are_uniform():
    shares = Shares(offline=0.25, online=0.5, generated_online=0.25)
    replay = make_replay(offline=20, online=30, generated_online=10)
    sampler = prioritized(beta=1.0)
    for _ in range(20):
        draw = sampled(sampler, replay, 240, shares)
        assert torch.bincount(draw.sources, minlength=4).tolist() == [60, 120, 0, 60]
    generated = draw.sources == Source.GENERATED_ONLINE
    assert draw.weights[generated].unique().numel() == 1
    assert sampler.tensors["priorities"][50:].isinf().all()


def test_shares_are_exact_over_time():
    replay, sampler = make_replay(offline=20, online=20, generated_online=10), prioritized()
    shares = Shares(offline=0.749, online=0.2, generated_online=0.051)
    drawn = torch.cat([sampled(sampler, replay, 10, shares).sources for _ in range(1000)])
    assert torch.bincount(drawn, minlength=4).tolist() == [7490, 2000, 0, 510]


def test_rows_generated_at_batch_time_begin_as_real_ones_drawn_by_priority():
    shares = Shares(offline=0.5, generated_offline=0.5, at_batch_time=True)
    replay = make_replay(offline=20, online=0)
    draw = seen(replay).sample(replay, shares, 200_000)
    marked = draw.sources == Source.GENERATED_OFFLINE
    found = torch.bincount(draw.rows[marked], minlength=20) / 100_000
    torch.testing.assert_close(found, probabilities(replay), atol=0.004, rtol=0)


def test_whole_batches_come_from_one_pool():
    sampler, replay = prioritized(), make_replay(offline=5, online=5)
    shares = Shares(offline=0.5, online=0.5, whole_batches=True)
    chosen = [sampled(sampler, replay, 8, shares).sources.unique().tolist() for _ in range(100)]
    assert sorted(set(map(tuple, chosen))) == [(0,), (1,)]


def test_the_table_is_made_at_its_interval_and_when_a_pool_appears():
    replay, sampler = make_replay(offline=20, online=20), prioritized(refresh_interval=3)
    replay.online.clear()
    tables = []
    for step in range(5):
        if step == 4:
            replay.online.append(raw_batch(1))
        sampled(sampler, replay, 16, HALVES)
        tables.append(sampler.tensors["table"])
    assert tables[0] is tables[1] is tables[2] and tables[3] is not tables[2] and tables[4] is not tables[3]


def test_nothing_is_asked_of_an_agent_before_the_first_draw():
    assert prioritized().update(make_replay(offline=5, online=0), NoAgent()) == {}


def test_the_state_repeats_draws_between_two_tables():
    replay, sampler = make_replay(offline=20, online=20), prioritized(refresh_interval=4)
    for _ in range(6):
        sampled(sampler, replay, 16, HALVES)
    restored = prioritized(seed=1, refresh_interval=4)
    restored.load_state_dict(deepcopy(sampler.state_dict()))
    for _ in range(6):
        one, other = sampled(sampler, replay, 16, HALVES), sampled(restored, replay, 16, HALVES)
        assert torch.equal(one.rows, other.rows) and torch.equal(one.weights, other.weights)


def test_a_restored_sampler_knows_which_rows_it_has_seen():
    replay, sampler, restored = make_replay(offline=0, online=20), prioritized(), prioritized(seed=1)
    for rows in (3, 2):
        replay.online.append(raw_batch(rows))
        sampled(sampler, replay, 2000, ONLINE)
    sampler.update(replay, Critic())
    restored.load_state_dict(deepcopy(sampler.state_dict()))
    restored.tensors["drawn"] = torch.empty(2, 0, dtype=torch.int64)
    replay.online.append(raw_batch(1))
    restored.update(replay, Critic())
    assert restored.tensors["priorities"].isinf().nonzero().tolist() == [[5]]
