import io

import numpy as np
import pytest

pytest.importorskip("d3rlpy")

import d3rlpy
from d3rlpy.algos import CalQLConfig, IQLConfig, TD3PlusBCConfig
from d3rlpy.dataset import Episode, InfiniteBuffer, MultiStepTransitionPicker, ReplayBuffer
from marked import MARK, MarkedRows

from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.augmenter import Augmenter
from o2o_diffusion.integrations.d3rlpy import mixed, to_arrays, to_d3rlpy


def real(**options) -> ReplayBuffer:
    """Two episodes of 20 steps; the first ends the task, the second is cut short."""
    random = np.random.default_rng(0)
    episodes = [
        Episode(
            random.random((20, 3), np.float32),
            2 * random.random((20, 1), np.float32) - 1,
            random.random((20, 1), np.float32),
            terminated,
        )
        for terminated in (True, False)
    ]
    return ReplayBuffer(InfiniteBuffer(), episodes=episodes, **options)


def augmenter(**options) -> Augmenter:
    return Augmenter.fit(to_arrays(real()), generator=MarkedRows(), **options)


@pytest.fixture(autouse=True)
def seeded():
    """d3rlpy draws from the global generators."""
    d3rlpy.seed(0)


def test_generated_transitions_are_drawn_as_they_are():
    buffer = to_d3rlpy(augmenter(), 30)
    assert buffer.transition_count == buffer.size() == 30
    batch = buffer.sample_transition_batch(200)
    ends = batch.terminals[:, 0].astype(bool)
    assert 50 < ends.sum() < 150
    assert (batch.observations == MARK).all() and (batch.actions == 0.5).all() and (batch.intervals == 1).all()
    assert (batch.rewards[:, 0] == np.where(ends, -1, -2)).all()
    # d3rlpy's own zeros where the task ended, which no learner reads
    assert (batch.next_observations[~ends] == MARK + 1).all() and (batch.next_observations[ends] == 0).all()


def test_episodes_have_one_transition_each():
    episodes = to_d3rlpy(augmenter(), 30).episodes
    assert [episode.transition_count for episode in episodes] == [1] * 30
    assert {(len(episode), episode.terminated) for episode in episodes[:30]} == {(1, True), (2, False)}
    assert len(episodes[-3:]) == 3


def test_what_follows_a_generated_transition_is_unknown():
    batch = to_d3rlpy(augmenter(), 30).sample_transition_batch(40)
    for transition in batch.transitions:
        assert transition.rewards_to_go.sum() == (-1 if transition.terminal else -np.inf)
        assert transition.terminal or np.isnan(transition.next_action).all()


@pytest.mark.parametrize(
    ("ratio", "size", "expected"), [(0.0, 10, 0), (0.5, 10, 5), (0.9, 10, 9), (1.0, 10, 10), (1 / 3, 256, 86)]
)
def test_the_share_of_generated_rows_is_exact(ratio, size, expected):
    mixture = mixed(real(), augmenter(), 30, ratio)
    for _ in range(5):
        observations = mixture.sample_transition_batch(size).observations
        assert (observations == MARK).all(1).tolist() == [False] * (size - expected) + [True] * expected


def test_batches_look_as_without_the_mixture():
    plain, mixture = real(), mixed(real(), augmenter(), 30, 0.5)
    for name, column in vars(plain.sample_transition_batch(8)).items():
        if isinstance(column, np.ndarray):
            other = getattr(mixture.sample_transition_batch(8), name)
            assert other.shape == column.shape and other.dtype == column.dtype, name


def test_the_real_buffer_is_never_written():
    buffer = real()
    before = to_arrays(buffer)
    mixture = mixed(buffer, augmenter(), 30, 0.5)
    mixture.sample_transition_batch(100).observations[:] = 0
    assert buffer.transition_count == 39 and mixture.transition_count == 69
    for name, column in to_arrays(buffer).items():
        assert np.array_equal(column, before[name]), name


def test_what_is_appended_is_real():
    buffer = real()
    mixture = mixed(buffer, augmenter(), 30, 0.5)
    for _ in range(3):
        mixture.append(np.zeros(3, np.float32), np.zeros(1, np.float32), 0.0)
    mixture.clip_episode(True)
    assert buffer.transition_count == 42
    with pytest.raises(InputError, match="takes no others"):
        mixture.secondary_replay_buffer.append_episode(buffer.episodes[0])


def test_to_arrays_keeps_transitions_and_endings():
    buffer = real()
    arrays, (first, second) = to_arrays(buffer), buffer.episodes
    assert len(arrays["rewards"]) == buffer.transition_count == 39
    assert arrays["terminations"].nonzero()[0].tolist() == [19]
    assert np.array_equal(arrays["observations"][20:], second.observations[:-1])
    assert np.array_equal(arrays["next_observations"][20:], second.observations[1:])
    assert np.array_equal(
        arrays["next_observations"][:20], np.vstack([first.observations[1:], first.observations[-1:]])
    )
    assert np.array_equal(arrays["actions"], np.vstack([first.actions, second.actions[:-1]]))
    generated = to_arrays(to_d3rlpy(augmenter(), 30))
    assert len(generated["rewards"]) == 30 and (generated["observations"] == MARK).all()


def test_actions_are_in_the_users_bounds():
    buffer = to_d3rlpy(augmenter(action_low=-2, action_high=2), 30)
    assert (buffer.sample_transition_batch(5).actions == 1.0).all()


def test_the_mixture_takes_the_real_buffers_picker():
    mixture = mixed(real(transition_picker=MultiStepTransitionPicker(5, 0.9)), augmenter(), 30, 0.5)
    batch = mixture.sample_transition_batch(40)
    assert (batch.intervals[20:] == 1).all() and (batch.intervals[:20] > 1).any()
    assert np.isin(batch.rewards[20:], (-1, -2)).all()


def test_generated_buffers_survive_a_file():
    buffer, file = to_d3rlpy(augmenter(), 30), io.BytesIO()
    buffer.dump(file)
    file.seek(0)
    loaded = ReplayBuffer.load(file, InfiniteBuffer())
    assert loaded.transition_count == 30
    for name, column in to_arrays(loaded).items():
        assert np.array_equal(column, to_arrays(buffer)[name]), name


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"ratio is 1\.5"):
        mixed(real(), augmenter(), 30, 1.5)
    narrow = ReplayBuffer(
        InfiniteBuffer(),
        episodes=[Episode(np.zeros((5, 2), "f4"), np.full((5, 1), 0.5, "f4"), np.zeros((5, 1), "f4"), True)],
    )
    with pytest.raises(InputError, match=r"observations \[\(2,\)\] and 1 actions; the augmenter was made for"):
        mixed(narrow, augmenter(), 30, 0.5)
    discrete = ReplayBuffer(
        InfiniteBuffer(),
        episodes=[Episode(np.zeros((5, 3), "f4"), np.zeros((5, 1), "i4"), np.zeros((5, 1), "f4"), True)],
    )
    with pytest.raises(InputError, match="discrete"):
        mixed(discrete, augmenter(), 30, 0.5)
    with pytest.raises(InputError, match="not trajectories"):
        mixed(real(), augmenter(), 30, 0.5).sample_trajectory_batch(4, 5)


def test_a_diffusion_model_fits_a_d3rlpy_dataset():
    tiny = [
        "updates=10",
        "batch_size=32",
        "width=16",
        "depth=1",
        "sampling.num_steps=2",
        "num_samples=50",
        "gate.rows=0",
    ]
    buffer = real()
    batch = mixed(buffer, Augmenter.fit(to_arrays(buffer), settings=tiny), 40, 0.5).sample_transition_batch(30)
    assert np.isfinite(batch.observations).all() and np.abs(batch.actions).max() <= 1
    assert set(batch.terminals[:, 0]) <= {0.0, 1.0}


@pytest.mark.parametrize("config", [TD3PlusBCConfig, IQLConfig, CalQLConfig])
def test_algorithms_learn_from_the_mixture(config):
    """Cal-QL reads the unknown returns."""
    buffer = real()
    algorithm = config(batch_size=16).create()
    algorithm.build_with_dataset(buffer)
    before = algorithm.predict(np.ones((4, 3), np.float32))
    mixture = mixed(buffer, augmenter(), 30, 0.5)
    for _ in range(5):
        losses = algorithm.update(mixture.sample_transition_batch(16))
        assert np.isfinite(list(losses.values())).all(), losses
    assert not np.array_equal(algorithm.predict(np.ones((4, 3), np.float32)), before)
