"""Recordings are proper Minari datasets, made of whole episodes, complete or not there at all."""

from dataclasses import replace

import minari
import numpy as np
import pytest

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.environments import recording as module
from o2o_diffusion.environments.behaviors import policy
from o2o_diffusion.environments.behaviors.policy import SavedPolicy, save_policy
from o2o_diffusion.environments.recording import Recording, Stage, record
from o2o_diffusion.errors import InputError

MAZE = {"continuing_task": False, "reset_target": False}
PENDULUM = Recording("o2o/pendulum-v0", "Pendulum-v1", {"g": 5.0}, 20, num_steps=100)


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


def files(folder):
    return [path for path in folder.glob("**/*") if path.is_file()]


def test_a_recording_is_a_minari_dataset():
    record(replace(PENDULUM, dataset="o2o/pendulum/tiny-v0"), progress=False)
    assert list(minari.list_local_datasets()) == ["o2o/pendulum/tiny-v0"]
    theirs, ours = minari.load_dataset("o2o/pendulum/tiny-v0"), load_dataset("o2o/pendulum/tiny-v0")
    assert theirs.total_steps == ours.num_transitions == 100 and len(ours.episodes) == 5
    assert theirs[0].truncations[-1] and not theirs[0].terminations.any()
    assert len({tuple(episode.observations[0]) for episode in ours.episodes}) == 5  # each starts elsewhere
    assert ours.environment is not None and ours.environment.kwargs == {"g": 5.0}
    assert ours.environment.max_episode_steps == 20
    assert np.abs(theirs[0].actions).max() > 1  # the environment's own box is [-2, 2]
    assert np.allclose(theirs[0].actions, 2 * ours.episodes[0].actions, atol=1e-6)


def test_the_same_seed_records_the_same_data():
    for number, seed in enumerate((0, 0, 1)):
        record(Recording(f"o2o/pendulum-v{number}", "Pendulum-v1", num_steps=200, seed=seed), progress=False)
    first, same, other = (load_dataset(f"o2o/pendulum-v{number}").fingerprint for number in range(3))
    assert first == same != other


def test_balance_keeps_the_pole_up():
    record(
        Recording("o2o/balance-v0", "InvertedPendulum-v5", num_steps=1_000, stages=[Stage("balance")]), progress=False
    )
    (episode,) = load_dataset("o2o/balance-v0").episodes
    assert len(episode) == 1_000 and not episode.terminated and np.abs(episode.actions).max() <= 1
    with pytest.raises(InputError, match="'balance' drives InvertedPendulum only, not Pendulum-v1"):
        record(Recording("o2o/other-v0", "Pendulum-v1", stages=[Stage("balance")]), progress=False)


def test_the_reaching_behavior_ends_near_the_target():
    record(Recording("o2o/reach-v0", "Reacher-v5", num_steps=500, stages=[Stage("reach")]), progress=False)
    observations = np.stack([episode.observations[[0, -1], 8:10] for episode in load_dataset("o2o/reach-v0").episodes])
    first, last = np.linalg.norm(observations, axis=-1).mean(0)  # m from fingertip to target
    assert first > 0.15 and last < 0.07  # straight arms approach slowly
    with pytest.raises(InputError, match="'reach' drives Reacher only, not Pendulum-v1"):
        record(Recording("o2o/other-v0", "Pendulum-v1", stages=[Stage("reach")]), progress=False)


def test_waypoints_reach_the_goal():
    recording = Recording(
        "o2o/maze-v0", "PointMaze_Medium-v3", MAZE, num_steps=2_000, stages=[Stage("waypoints", noise=0.5)]
    )
    record(replace(recording, dataset="o2o/maze-v0"), progress=False)
    assert np.mean([episode.terminated for episode in load_dataset("o2o/maze-v0").episodes]) > 0.95
    with pytest.raises(InputError, match="drives PointMaze environments only, not Pendulum-v1"):
        record(Recording("o2o/other-v0", "Pendulum-v1", stages=[Stage("waypoints")]), progress=False)


def test_stages_get_their_shares_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "FOLDER", tmp_path)
    save_policy(tmp_path / "pendulum" / "still.safetensors", actor(), {"environment": "Pendulum-v1"})
    stages = [Stage("random", share=1), Stage("pendulum/still", share=3)]
    record(Recording("o2o/stages-v0", "Pendulum-v1", {}, 10, num_steps=80, stages=stages), progress=False)
    moving = [bool(np.abs(episode.actions).max() > 0) for episode in load_dataset("o2o/stages-v0").episodes]
    assert moving == [True] * 2 + [False] * 6
    with pytest.raises(InputError, match="'pendulum/stil'; did you mean 'pendulum/still'"):
        record(Recording("o2o/typo-v0", "Pendulum-v1", stages=[Stage("pendulum/stil")]), progress=False)
    with pytest.raises(InputError, match=r"takes observations \[3\] and gives actions \[1\]"):
        record(Recording("o2o/other-v0", "Hopper-v5", stages=[Stage("pendulum/still")]), progress=False)


def test_noise_is_added_to_the_actions_of_a_behavior(tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "FOLDER", tmp_path)
    save_policy(tmp_path / "still.safetensors", actor(), {"environment": "Pendulum-v1"})
    recording = Recording("o2o/noisy-v0", "Pendulum-v1", num_steps=1_000, stages=[Stage("still", noise=0.2)])
    record(recording, progress=False)
    actions = np.concatenate([episode.actions for episode in load_dataset("o2o/noisy-v0").episodes])
    assert abs(actions.std() - 0.2) < 0.02 and abs(actions.mean()) < 0.02  # in [-1, 1]


def test_existing_and_foreign_ids_are_refused(store):
    record(replace(PENDULUM, dataset="o2o/tiny-v0"), progress=False)
    before = {path: path.read_bytes() for path in files(store)}
    for name, message in {
        "o2o/tiny-v0": "exists in",
        "other/tiny-v0": "begin with 'o2o/'",
        "o2o/../tiny-v0": "Minari id",
        "o2o/tiny": "Minari id",
    }.items():
        with pytest.raises(InputError, match=message):
            record(replace(PENDULUM, dataset=name), progress=False)
    assert before == {path: path.read_bytes() for path in files(store)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("where", ["write_dataset", "_episode"])
def test_nothing_stays_behind_when_interrupted(store, monkeypatch, error, where):
    def interrupt(*args):
        raise error

    monkeypatch.setattr(module, where, interrupt)
    with pytest.raises(error):
        record(replace(PENDULUM, dataset="o2o/tiny-v0"), progress=False)
    assert list(store.iterdir()) == []


def actor(hidden=4):
    shapes = {"trunk.0": (hidden, 3), "trunk.1": (hidden, hidden), "mean": (1, hidden), "log_std": (1, hidden)}
    tensors = {f"{name}.weight": np.zeros(shape) for name, shape in shapes.items()}
    return tensors | {f"{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items()}


def test_a_saved_policy_is_a_tanh_gaussian(tmp_path):
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=tensor.shape).astype(np.float16) for name, tensor in actor().items()}
    tensors |= {"observation_mean": np.float16([1, 0, 0]), "observation_std": np.float16([2, 1, 1])}
    save_policy(tmp_path / "p.safetensors", tensors, {"env_steps": 7})
    saved = SavedPolicy.load(tmp_path / "p.safetensors")
    exact = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    hidden = np.array([0.5, 2.0, 3.0])  # (2 - 1) / 2
    for layer in ("trunk.0", "trunk.1"):
        hidden = np.maximum(exact[f"{layer}.weight"] @ hidden + exact[f"{layer}.bias"], 0)
    mean = exact["mean.weight"] @ hidden + exact["mean.bias"]
    std = np.exp(exact["log_std.weight"] @ hidden + exact["log_std.bias"])
    observation = np.array([2.0, 2.0, 3.0])
    assert saved.metadata["env_steps"] == 7 and saved(observation) == pytest.approx(np.tanh(mean), abs=1e-4)
    sampling = SavedPolicy.load(tmp_path / "p.safetensors", np.random.default_rng(0))
    draws = np.arctanh([sampling(observation).clip(-1 + 1e-7, 1 - 1e-7) for _ in range(1000)])
    inside = np.abs(draws) < 7  # beyond, float32 rounds to 1
    assert abs(np.median(draws) - mean[0]) < 0.1 * std[0] + 0.1 and inside.any()


def test_damaged_policies_are_one_line(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        SavedPolicy.load(tmp_path / "p.safetensors")
    save_policy(tmp_path / "q.safetensors", {"mean.weight": np.zeros((1, 3))}, {})
    with pytest.raises(InputError, match=r"needs the tensor 'mean\.bias'"):
        SavedPolicy.load(tmp_path / "q.safetensors")
