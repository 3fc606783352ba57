import numpy as np
import torch

from o2o_diffusion.types import Episode, RewardTransform, Source, Transitions, TransitionSpec


def make_batch(size: int, observation_dim: int = 3, action_dim: int = 2) -> Transitions:
    return Transitions.create(
        torch.randn(size, observation_dim),
        torch.rand(size, action_dim) * 2 - 1,
        torch.randn(size),
        torch.randn(size, observation_dim),
        torch.randint(0, 2, (size,)).float(),
    )


def make_episode(rewards: list[float], terminated: bool = False) -> Episode:
    steps = len(rewards)
    observations = np.arange(3 * (steps + 1), dtype=np.float32).reshape(steps + 1, 3)
    return Episode(observations, np.zeros((steps, 2), np.float32), np.array(rewards, np.float32), terminated)


def test_flat_rows_hold_every_column_once():
    spec, batch = TransitionSpec(3, 2), make_batch(5)
    rows = spec.flatten(batch)
    assert rows.shape == (5, spec.row_dim) == (5, 10)
    again = spec.unflatten(rows, Source.GENERATED_ONLINE)
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
    assert make_episode([0.0, 0.0], terminated=True).transitions().continues.tolist() == [1.0, 0.0]
    assert make_episode([0.0, 0.0], terminated=False).transitions().continues.tolist() == [1.0, 1.0]


def test_transitions_slice_concatenate_and_replace():
    batch = make_batch(4)
    both = Transitions.cat([batch[:1], batch[1:]])
    assert torch.equal(both.observations, batch.observations) and len(batch[torch.tensor([2])]) == 1
    assert (batch.where(weights=torch.zeros(4)).weights == 0).all() and (batch.weights == 1).all()
