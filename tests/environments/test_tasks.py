import numpy as np
import pytest

from o2o_diffusion.environments.tasks import Task, reward_transform
from o2o_diffusion.errors import InputError
from o2o_diffusion.types import Episode


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
    with pytest.raises(InputError, match=r"'task\.reward': 'rang' is not one of"):
        Task(Task.Config(dataset=pendulum_table, environment="Pendulum-v1", reward="rang"))
