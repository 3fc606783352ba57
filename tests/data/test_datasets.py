"""Every kind of input loads to the same episodes, and ids stay inside the store."""

import json
import logging
from functools import partial

import gymnasium as gym
import h5py
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.local import folder_of
from o2o_diffusion.data.spaces import choose_keys
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.environments.recording import Recording, Stage, record
from o2o_diffusion.errors import InputError
from o2o_diffusion.types import RewardTransform

LENGTHS, TERMINATED = (3, 1, 4), (True, False, False)  # the second is truncated by a timeout, the third by a gap


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def table():
    random = np.random.default_rng(0)
    states = [random.normal(size=(length + 1, 3)) for length in (*LENGTHS, 2)]
    rows = sum((*LENGTHS, 2))
    ends = np.cumsum(LENGTHS) - 1
    return {
        "observations": np.concatenate([s[:-1] for s in states]),
        "next_observations": np.concatenate([s[1:] for s in states]),
        "actions": random.uniform(-1, 1, (rows, 2)),
        "rewards": random.normal(size=rows),
        "terminals": np.isin(np.arange(rows), ends[:1]),
        "timeouts": np.isin(np.arange(rows), ends[1:2]),
    }


def write_npz(folder, table):
    np.savez(folder / "tiny.npz", **table)
    return folder / "tiny.npz"


def write_hdf5(folder, table):
    with h5py.File(folder / "tiny.hdf5", "w") as file:
        for key, array in table.items():
            file[key] = array
    return folder / "tiny.hdf5"


def write_minari(folder, episodes, *, action_space=None, observation_space=None, **metadata):
    folder.mkdir(parents=True)
    observation_space = observation_space or gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = action_space or gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    storage = MinariStorage.new(folder / "data", observation_space, action_space)
    storage.update_metadata({"dataset_id": "o2o/tiny-v0", "minari_version": "0.5.4", **metadata})
    storage.update_episodes([EpisodeBuffer(**episode) for episode in episodes])
    return folder


def episodes_of(table):
    stops = np.cumsum((*LENGTHS, 2))
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        rows = slice(start, stop)
        yield {
            "observations": np.append(table["observations"][rows], table["next_observations"][stop - 1 : stop], axis=0),
            "actions": table["actions"][rows],
            "rewards": table["rewards"][rows],
            "terminations": table["terminals"][rows],
            "truncations": table["timeouts"][rows],
        }


def test_every_kind_of_input_gives_the_same_episodes(tmp_path, table):
    folder = write_minari(tmp_path / "tiny", episodes_of(table))
    names = [write_npz(tmp_path, table), write_hdf5(tmp_path, table), folder, folder / "data"]
    datasets = [load_dataset(str(name)) for name in names]
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    for dataset in datasets:
        assert [len(e) for e in dataset.episodes] == [*LENGTHS, 2]
        assert [e.terminated for e in dataset.episodes] == [*TERMINATED, False]
        assert (dataset.spec.observation_dim, dataset.spec.action_dim) == (3, 2)
    first = datasets[0].episodes[0]
    assert np.array_equal(first.observations[-1], table["next_observations"][2].astype(np.float32))
    assert first.transitions().terminations.tolist() == [0, 0, 1]


def test_without_next_observations_only_unfinished_last_transitions_are_dropped_and_told(tmp_path, table, caplog):
    del table["next_observations"]
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(str(write_npz(tmp_path, table)))
    assert [len(e) for e in dataset.episodes] == [3, 5]  # 1 - 1 is nothing; the gap is invisible: 4 + 2 - 1
    assert [e.terminated for e in dataset.episodes] == [True, False]
    assert np.array_equal(dataset.episodes[0].observations[-1], dataset.episodes[0].observations[-2])
    assert "last transition of 2 episodes" in caplog.text and caplog.text.count("\n") == 1


def test_a_terminal_at_a_timeout_is_a_truncation(tmp_path, table):
    table["timeouts"] = table["timeouts"] | table["terminals"]
    assert not any(e.terminated for e in load_dataset(str(write_npz(tmp_path, table))).episodes)


def test_a_table_without_timeouts_is_refused(tmp_path, table):
    del table["timeouts"]
    with pytest.raises(InputError, match="has no timeouts"):
        load_dataset(str(write_npz(tmp_path, table)))


def test_actions_of_another_box_are_rescaled_like_the_environment(tmp_path, table):
    box = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([2, 4], np.float32))
    episodes = [e | {"actions": np.array([2, 2]) * e["actions"] + np.array([0, 2])} for e in episodes_of(table)]
    dataset = load_dataset(str(write_minari(tmp_path / "boxed", episodes, action_space=box)))
    actions = np.concatenate([e.actions for e in dataset.episodes])
    assert np.allclose(actions, table["actions"], atol=1e-6)
    assert dataset.action_bounds is not None
    assert np.allclose(dataset.action_bounds.to_box(actions), 2 * table["actions"] + [0, 2], atol=1e-6)


def test_returns_of_a_loaded_episode(tmp_path, table):
    table["rewards"][:3] = [1, 0, 2]
    episode = load_dataset(str(write_npz(tmp_path, table))).episodes[0]
    assert episode.returns(RewardTransform(), 0.5).tolist() == [1.5, 1.0, 2.0]
    table["rewards"][:3] = 0
    episode = load_dataset(str(write_npz(tmp_path, table))).episodes[0]
    failing = episode.returns(RewardTransform(scale=10.0, bias=-5.0), 0.99, failure_reward=0.0)
    assert failing == pytest.approx(-500.0)  # -5 at every step for ever


def test_a_subset_has_one_whole_episode_of_each_part_chosen_by_the_seed(tmp_path, table):
    whole = load_dataset(str(write_npz(tmp_path, table)))
    subsets = [whole.subset(2, seed) for seed in range(20)]
    number = {id(episode): k for k, episode in enumerate(whole.episodes)}
    pairs = {tuple(number[id(episode)] for episode in subset.episodes) for subset in subsets}
    assert pairs == {(0, 2), (0, 3), (1, 2), (1, 3)}  # one of the first two episodes and one of the last two
    assert whole.subset(2, 5).fingerprint == subsets[5].fingerprint
    assert len({subset.fingerprint for subset in (*subsets, whole)}) == 5
    assert whole.subset(4, 0).fingerprint == whole.fingerprint
    with pytest.raises(InputError, match="tiny has 4 episodes, fewer than the 5 to keep"):
        whole.subset(5, 0)


def test_released_episodes_leave_sizes_mean_return_and_fingerprint(tmp_path, table):
    whole = load_dataset(str(write_npz(tmp_path, table)))
    released = load_dataset(str(tmp_path / "tiny.npz")).without_episodes()
    assert released.episodes == () and len(whole.episodes) == released.num_episodes == 4
    assert released.num_transitions == sum((*LENGTHS, 2)) and released.fingerprint == whole.fingerprint
    assert released.mean_return == whole.mean_return == pytest.approx(table["rewards"].sum() / 4, rel=1e-5)
    assert released.provenance == whole.provenance and released.without_episodes().num_episodes == 4


def test_pointmaze_is_flattened_like_its_environment():
    maze = {"continuing_task": False, "reset_target": False}
    recording = Recording("o2o/maze/tiny-v0", "PointMaze_UMaze-v3", maze, 30, num_steps=60, stages=[Stage("waypoints")])
    record(recording, progress=False)
    dataset = load_dataset("o2o/maze/tiny-v0")
    assert dataset.observation_keys == ("desired_goal", "observation") and dataset.spec.observation_dim == 6
    assert dataset.environment is not None and dataset.environment.max_episode_steps == 30
    assert dataset.environment.observation_keys == dataset.observation_keys
    environment = make_environment(dataset.environment)
    observation, _ = environment.reset(seed=recording.seed)
    episode = dataset.episodes[0]
    for step in range(len(episode)):
        assert np.array_equal(observation, episode.observations[step])
        observation, reward, *_ = environment.step(episode.actions[step])
        assert reward == episode.rewards[step]


def test_achieved_goal_stays_unless_the_observation_has_it(tmp_path, table):
    goals = {key: gym.spaces.Box(-np.inf, np.inf, (size,)) for key, size in (("achieved_goal", 2), ("observation", 3))}

    def load(name, goal):
        episodes = [e | {"observations": {"observation": e["observations"], **goal(e)}} for e in episodes_of(table)]
        return load_dataset(str(write_minari(tmp_path / name, episodes, observation_space=gym.spaces.Dict(goals))))

    assert load("inside", lambda e: {"achieved_goal": e["observations"][:, 1:]}).observation_keys == ("observation",)
    outside = load("outside", lambda e: {"achieved_goal": e["observations"][:, :2] + 1})
    assert outside.observation_keys == ("achieved_goal", "observation") and outside.spec.observation_dim == 5


def test_nested_fields_are_flattened_in_the_order_of_their_names(tmp_path, table):
    box = partial(gym.spaces.Box, -np.inf, np.inf)
    goals = gym.spaces.Dict({"kettle": box((1,)), "light": box((2,))})
    space = gym.spaces.Dict({"observation": box((3,)), "achieved_goal": goals})

    def nested(observations):
        own = {"kettle": observations[:, 2:], "light": observations[:, :2] + 1}  # one repeats the observation
        return {"observation": observations, "achieved_goal": own}

    episodes = [episode | {"observations": nested(episode["observations"])} for episode in episodes_of(table)]
    dataset = load_dataset(str(write_minari(tmp_path / "nested", episodes, observation_space=space)))
    assert dataset.observation_keys == ("achieved_goal.light", "observation") and dataset.spec.observation_dim == 5
    row = dataset.episodes[0].observations[0]
    assert np.allclose(row, np.concatenate([row[2:4] + 1, row[2:]]))


def test_an_unknown_id_is_one_line_with_the_nearest_local_one(store, table, monkeypatch):
    write_minari(store / "o2o" / "tiny-v0", episodes_of(table))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_dataset("o2o/tiny-v0").name == "o2o/tiny-v0"
    with pytest.raises(InputError, match=r"'o2o/tny-v0' is not in .*store.*did you mean 'o2o/tiny-v0'") as error:
        load_dataset("o2o/tny-v0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "..", "../x-v0", "/x-v0", "a/../../x-v0", "a//x-v0", "~/x-v0", "x", "o2o/x-v0\n"])
def test_ids_that_leave_the_store_are_refused(name):
    with pytest.raises(InputError, match="Minari id"):
        folder_of(name)


def test_a_link_out_of_the_store_is_refused(store, tmp_path):
    store.mkdir()
    (store / "out").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is outside"):
        folder_of("out/x-v0")


def test_the_environment_is_never_made_to_find_missing_spaces(tmp_path, table):
    folder = write_minari(tmp_path / "tiny", episodes_of(table))
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["action_space"]
    path.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="has no action_space"):
        load_dataset(str(folder))


@pytest.mark.parametrize("write", [write_npz, write_hdf5])
def test_damaged_and_missing_files_are_one_line(tmp_path, table, write):
    path = write(tmp_path, table)
    with pytest.raises(InputError, match=f"no file.*did you mean '{path.name}'"):
        load_dataset(str(path.with_stem("tinny")))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(str(path))


def test_a_damaged_minari_folder_is_one_line(tmp_path, table):
    folder = write_minari(tmp_path / "tiny", episodes_of(table))
    (folder / "data" / "main_data.hdf5").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(str(folder))
    with pytest.raises(InputError, match="is not a Minari dataset"):
        load_dataset(str(tmp_path))


def test_a_goal_is_left_out_only_if_every_episode_repeats_it_in_the_same_columns():
    states = np.random.default_rng(0).normal(size=(2, 5, 3))

    def keys(*columns):
        """Of two episodes whose goal is at these columns of the observation; None: nowhere."""
        goals = [s[:, :2] + 1 if k is None else s[:, k : k + 2] for s, k in zip(states, columns, strict=True)]
        return choose_keys({"observation": s, "achieved_goal": goal} for s, goal in zip(states, goals, strict=True))

    assert keys(1, 1) == ("observation",)
    for columns in ((None, 1), (1, None), (0, 1)):
        assert keys(*columns) == ("achieved_goal", "observation")


def test_the_fingerprint_depends_on_every_array(tmp_path, table):
    changes = [{}, {}, {"timeouts": table["timeouts"] | table["terminals"]}]  # the third ends in another way
    for name in ("observations", "actions", "rewards"):
        other = table[name].copy()
        other[4] *= 0.99
        changes.append({name: other})
    found = [load_dataset(str(write_npz(tmp_path, table | change))).fingerprint for change in changes]
    assert found[0] == found[1] and len(set(found)) == len(found) - 1
