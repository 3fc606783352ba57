import numpy as np
import torch
from builders import SPEC, raw_batch

from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Episode, RewardTransform, Source, Transitions


def make_episode(rewards: list[float], terminated: bool = False) -> Episode:
    steps = len(rewards)
    observations = np.arange(3 * (steps + 1), dtype=np.float32).reshape(steps + 1, 3)
    return Episode(observations, np.zeros((steps, 2), np.float32), np.array(rewards, np.float32), terminated)


def test_flat_rows_hold_every_column_once():
    batch = raw_batch(5)
    rows = SPEC.flatten(batch)
    assert rows.shape == (5, SPEC.row_dim) == (5, 10)
    again = SPEC.unflatten(rows, Source.GENERATED_ONLINE)
    for name in ("observations", "actions", "rewards", "next_observations", "terminations"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    assert (again.sources == Source.GENERATED_ONLINE).all() and (again.returns == float("-inf")).all()


def test_returns_are_discounted_sums_of_transformed_rewards():
    returns = make_episode([1.0, 0.0, 2.0]).returns(RewardTransform(scale=10.0, bias=-1.0), discount=0.5)
    assert np.allclose(returns, [9 - 0.5 + 0.25 * 19, -1 + 0.5 * 19, 19])


def test_an_episode_that_only_fails_fails_for_ever():
    transform = RewardTransform(scale=10.0, bias=-5.0)
    assert np.allclose(make_episode([0.0, 0.0]).returns(transform, 0.99, failure_reward=0.0), -500.0)
    assert make_episode([0.0, 1.0]).returns(transform, 0.99, failure_reward=0.0)[1] == 5.0


def test_only_a_terminated_episode_stops_bootstrapping():
    replay = Replay(SPEC, discount=0.5)
    for terminated, discounts in ((True, [0.5, 0.0]), (False, [0.5, 0.5])):
        raw = make_episode([0.0, 0.0], terminated=terminated).transitions()
        assert raw.discounts.isnan().all() and replay.scaled(raw).discounts.tolist() == discounts


def test_transitions_slice_concatenate_stack_and_replace():
    batch = raw_batch(4)
    both = Transitions.cat([batch[:1], batch[1:]])
    assert torch.equal(both.observations, batch.observations) and len(batch[torch.tensor([2])]) == 1
    assert (batch.where(weights=torch.zeros(4)).weights == 0).all() and (batch.weights == 1).all()
    stacked = Transitions.stack([batch, raw_batch(4, seed=1)])
    assert stacked.observations.shape == (2, 4, 3) and stacked.rewards.shape == (2, 4)
    assert torch.equal(stacked[0:1].rewards[0], batch.rewards)


def test_masked_rows_are_taken_whole_from_the_other_batch():
    one, other = raw_batch(4), raw_batch(4, seed=1, source=Source.ONLINE)
    mixed = one.with_rows(torch.tensor([False, True, True, False]), other)
    for name in ("observations", "actions", "rewards", "terminations", "sources", "weights"):
        found = getattr(mixed, name)
        assert torch.equal(found[1:3], getattr(other, name)[1:3]), name
        assert torch.equal(found[::3], getattr(one, name)[::3]), name
