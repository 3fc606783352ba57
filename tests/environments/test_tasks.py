import gymnasium as gym
import numpy as np
import pytest

from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.environments.recording import Recording, record
from o2o_diffusion.environments.tasks import Task, check_environment, reward_transform
from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import EnvironmentSpec, Episode, Source, TransitionSpec


@pytest.fixture
def light_pendulum(tmp_path, monkeypatch):
    """A recording of Pendulum-v1 with g = 5 and 20 steps per episode."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    record(Recording("o2o/light-v0", "Pendulum-v1", {"g": 5.0}, 20, num_steps=60), progress=False)
    return "o2o/light-v0"


@pytest.fixture
def heavy_pendulum():
    """An environment like Pendulum-v1 with other physics."""
    gym.register("HeavyPendulum-v0", "gymnasium.envs.classic_control:PendulumEnv", kwargs={"g": 20.0})
    yield "HeavyPendulum-v0"
    del gym.registry["HeavyPendulum-v0"]


def episodes(*rewards: list[float]) -> list[Episode]:
    return [
        Episode(
            np.zeros((len(r) + 1, 1), np.float32), np.zeros((len(r), 1), np.float32), np.array(r, np.float32), False
        )
        for r in rewards
    ]


def test_locomotion_is_scaled_by_the_spread_of_returns():
    transform = reward_transform(Task.Config(), episodes([1.0, 1.0], [3.0, 4.0]), "Hopper-v5")
    assert (transform.scale, transform.bias) == (1000 / 5, 0.0)


def test_sparse_rewards_become_minus_one_and_zero():
    transform = reward_transform(Task.Config(), episodes([0.0, 1.0], [0.0]), "PointMaze_UMaze-v3")
    assert [transform(0.0), transform(1.0)] == [-1.0, 0.0]


def test_other_rewards_stay_raw_unless_told():
    data = episodes([0.0, 2.0], [0.5])
    assert reward_transform(Task.Config(), data, "AdroitHandDoor-v1")(3.0) == 3.0
    told = Task.Config(reward="raw", reward_scale=10.0, reward_bias=-5.0)
    assert reward_transform(told, data, "AntMaze_UMaze-v4")(1.0) == 5.0


def test_a_task_without_dataset_starts_from_nothing():
    task = Task(Task.Config(environment="Pendulum-v1"))
    assert task.dataset.num_transitions == 0 and task.dataset.spec.observation_dim == 3
    assert task.make_environment().action_space.shape == (1,)


def test_the_dataset_is_refused_where_it_does_not_fit(pendulum_table):
    with pytest.raises(InputError, match=r"observations \[3\].*Hopper-v5, which has observations \[11\]"):
        Task(Task.Config(dataset=pendulum_table, environment="Hopper-v5"))


def test_loading_stores_the_episodes_and_releases_them(pendulum_table):
    task, whole = Task(Task.Config(dataset=pendulum_table, environment="Pendulum-v1")), load_dataset(pendulum_table)
    replay = Replay(task.spec, {Source.OFFLINE: task.dataset.num_transitions}, transform=task.transform)
    description = task.description
    task.load(replay)
    assert len(replay.offline) == 400 and replay.offline.all().returns.isfinite().all()
    observations = np.concatenate([episode.observations[:-1] for episode in whole.episodes])
    assert np.array_equal(replay.offline.all().observations.numpy(), observations)
    assert task.dataset.episodes == () and task.description == description
    for name in ("fingerprint", "mean_return", "num_transitions", "num_episodes"):
        assert getattr(task.dataset, name) == getattr(whole, name), name
    assert (task.dataset.num_episodes, task.dataset.num_transitions) == (2, 400)


def test_a_task_of_few_episodes(light_pendulum):
    def task(**settings) -> Task:
        return Task(Task.Config(dataset=light_pendulum, **settings))

    whole, one, share = task(), task(episodes=1), task(fraction=0.67)
    assert [t.dataset.num_transitions for t in (whole, one, share)] == [60, 20, 40]
    assert "60 transitions in 3 episodes" in whole.description
    assert "20 transitions in 1 of 3 episodes" in one.description
    assert task(fraction=0.01).dataset.num_episodes == 1 and task(fraction=1.0).dataset.num_episodes == 3
    assert len({task(episodes=1, subset_seed=seed).dataset.fingerprint for seed in range(20)}) == 3
    with pytest.raises(ValueError, match="'episodes' and 'fraction' are both set"):
        task(episodes=1, fraction=0.5)
    with pytest.raises(ValueError, match="'dataset' is not set"):
        Task.Config(environment="Pendulum-v1", episodes=1)


def test_the_data_and_the_policy_may_have_different_environments(light_pendulum, heavy_pendulum):
    data = EnvironmentSpec("Pendulum-v1", {"g": 5.0}, 20)
    own = Task(Task.Config(dataset=light_pendulum)).spec
    assert own.environment == own.data_environment == data
    other = Task(Task.Config(dataset=light_pendulum, environment=heavy_pendulum))
    assert other.environment == other.spec.environment == EnvironmentSpec(heavy_pendulum)
    assert other.spec.data_environment == data
    for source in Source:
        expected = data if source.label == "offline" else other.environment
        assert other.spec.environment_of(source) == expected
    assert getattr(other.make_environment().unwrapped, "g") == 20.0  # noqa: B009
    limited = Task(Task.Config(dataset=light_pendulum, max_episode_steps=7)).spec
    assert limited.environment == EnvironmentSpec("Pendulum-v1", {"g": 5.0}, 7) and limited.data_environment == data
    assert own == other.spec == limited  # specs are compared by their dimensions


def test_data_that_name_no_environment_come_from_the_one_that_is_set(pendulum_table):
    task = Task(Task.Config(dataset=pendulum_table, environment="Pendulum-v1"))
    assert task.spec.environment == task.spec.data_environment == EnvironmentSpec("Pendulum-v1")
    with pytest.raises(InputError, match=r"names no environment; set task\.environment="):
        Task(Task.Config(dataset=pendulum_table))


def test_scores_are_relative_to_the_returns_that_a_task_names():
    task = Task(Task.Config(environment="Hopper-v5", reference_returns=(-40.0, 60.0)))
    assert task.scores is not None and task.scores.normalize(np.array([-40.0, 10.0, 60.0])).tolist() == [0, 50, 100]
    with pytest.raises(ValueError, match="expected the lower one first"):
        Task.Config(environment="Hopper-v5", reference_returns=(60.0, -40.0))


def test_the_settings_scale_and_bias_come_after_the_kinds():
    told = Task.Config(reward="minus_one", reward_scale=10.0, reward_bias=3.0)
    transform = reward_transform(told, episodes([0.0, 1.0]), "Hopper-v5")
    assert [transform(0.0), transform(1.0)] == [-7.0, 3.0]


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-1, 2), (-1, 1)])
def test_both_action_bounds_must_be_the_environments(low, high):
    def dataset(low, high):
        bounds = ActionBounds(np.full(1, low, np.float32), np.full(1, high, np.float32))
        return Dataset("data", (), TransitionSpec(3, 1), action_bounds=bounds)

    pendulum = make_environment(EnvironmentSpec("Pendulum-v1"))
    check_environment(dataset(-2, 2), pendulum)
    with pytest.raises(InputError, match="data: actions between"):
        check_environment(dataset(low, high), pendulum)


@pytest.mark.parametrize(
    ("width", "keys"), [(8, ("achieved_goal", "desired_goal", "observation")), (6, ("achieved_goal", "observation"))]
)
def test_a_flat_table_of_a_goal_environment_is_accepted(tmp_path, width, keys):
    """With the goal, or without it as in D4RL."""
    rows, ends = np.zeros((50, width), np.float32), np.arange(50) % 10 == 9
    arrays = {"observations": rows, "next_observations": rows, "actions": rows[:, :2], "rewards": rows[:, 0]}
    np.savez(tmp_path / "maze.npz", terminals=0 * ends, timeouts=ends, **arrays)
    task = Task(Task.Config(dataset=str(tmp_path / "maze.npz"), environment="PointMaze_UMaze-v3"))
    assert task.environment.observation_keys == keys
    with pytest.raises(InputError, match="expected"):
        np.savez(
            tmp_path / "maze.npz",
            terminals=0 * ends,
            timeouts=ends,
            **arrays | {name: rows[:, :5] for name in ("observations", "next_observations")},
        )
        Task(Task.Config(dataset=str(tmp_path / "maze.npz"), environment="PointMaze_UMaze-v3"))
