import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from o2o_diffusion import Augmenter, TransitionSpec
from o2o_diffusion.errors import InputError

pytest.importorskip("stable_baselines3")
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from o2o_diffusion.integrations.sb3 import AugmentCallback, AugmentedReplayBuffer

TINY = [
    "updates=20", "refresh_updates=10", "num_samples=200", "first_refresh=100", "refresh_interval=100",
    "batch_size=32", "width=16", "depth=1", "embedding_dim=8", "sampling.num_steps=4", "gate.rows=0",
]  # fmt: skip
PENDULUM = TransitionSpec(3, 1)


def make(augmenter, environment="Pendulum-v1", algorithm=SAC, ratio=0.5, **settings):
    """A small model with an augmented buffer."""
    return algorithm(
        "MlpPolicy", environment, learning_starts=50, batch_size=16, seed=0, policy_kwargs={"net_arch": [8]},
        replay_buffer_class=AugmentedReplayBuffer, replay_buffer_kwargs={"augmenter": augmenter, "ratio": ratio},
        device="cpu", **settings,
    )  # fmt: skip


def fitted() -> Augmenter:
    """With a pool drawn from 300 made-up rows: observations around 5, rewards around -20."""
    random = np.random.default_rng(0)
    observations, rewards = 5 + 0.1 * random.normal(size=(300, 3)), -20 + 0.1 * random.normal(size=300)
    data = {"observations": observations, "actions": random.uniform(-2, 2, (300, 1)), "rewards": rewards}
    data |= {"next_observations": observations, "terminations": np.zeros(300)}
    return Augmenter.fit(data, settings=TINY, action_low=-2, action_high=2)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_training_refreshes_and_mixes(algorithm):
    augmenter = Augmenter(PENDULUM, settings=TINY)
    model = make(augmenter, algorithm=algorithm, ratio=0.25)
    model.learn(320, callback=AugmentCallback())
    assert augmenter.refreshes == 3 and augmenter.step == 320
    assert len(augmenter.replay.online) == 320 == model.replay_buffer.size()
    batch = model.replay_buffer.sample(16)
    stored = {row.tobytes() for row in model.replay_buffer.observations[:320, 0]}
    assert [row.tobytes() in stored for row in batch.observations.numpy()] == [True] * 12 + [False] * 4
    assert batch.discounts is None and batch.rewards.shape == batch.dones.shape == (16, 1)


def test_what_is_observed_is_what_the_buffer_holds_for_several_environments():
    augmenter = Augmenter(PENDULUM, settings=TINY, action_low=-2, action_high=2)  # the environment's
    model = make(augmenter, make_vec_env("Pendulum-v1", n_envs=3, seed=0))
    model.learn(630, callback=AugmentCallback())  # 210 steps of each: beyond the time limit of 200
    buffer, rows = model.replay_buffer, augmenter.replay.online.all()
    assert len(rows) == 630 == buffer.size() * 3
    for name in ("observations", "next_observations", "actions"):
        stored = getattr(buffer, name)[: buffer.pos].reshape(630, -1)
        assert np.array_equal(stored, getattr(rows, name).numpy())
    assert buffer.dones.sum() == 3 and rows.terminations.sum() == 0  # time limits all three
    assert np.array_equal(buffer.rewards[: buffer.pos].reshape(-1), rows.rewards.numpy())
    assert rows.actions.abs().max() <= 1  # in [-1, 1], the environment takes [-2, 2]


def test_terminations_are_observed():
    augmenter = Augmenter(TransitionSpec(4, 1), settings=TINY)
    model = make(augmenter, "InvertedPendulum-v5")
    model.learn(100)
    ends, rows = model.replay_buffer.dones[:100, 0], augmenter.replay.online.all()
    assert ends.sum() > 3 and np.array_equal(rows.terminations.numpy(), ends)
    augmenter.refresh()
    assert model.replay_buffer.sample(10).observations.dtype == torch.float64  # as InvertedPendulum's


def test_generated_rows_are_normalized_as_real_ones_and_the_augmenter_sees_raw_ones():
    augmenter = fitted()
    environment = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    model = make(augmenter, environment)
    model.learn(200, callback=AugmentCallback())
    environment.training = False
    assert np.array_equal(
        model.replay_buffer.observations[:100].reshape(200, 3), augmenter.replay.online.all().observations.numpy()
    )
    assert augmenter.replay.online.all().rewards.min() < -1  # raw; normalized ones would be smaller
    state = augmenter.rng.state_dict()  # so that both draw the same rows
    raw = augmenter.sample(8, unit_actions=True)
    augmenter.rng.load_state_dict(state)
    batch = model.replay_buffer.sample(16, env=environment)
    for name in ("observations", "next_observations"):
        expected = environment.normalize_obs(getattr(raw, name).numpy())
        assert np.allclose(getattr(batch, name)[8:], expected, atol=1e-6)
    assert np.allclose(batch.rewards[8:, 0], environment.normalize_reward(raw.rewards.numpy()), atol=1e-6)
    assert np.allclose(batch.actions[8:], raw.actions)


def test_saved_models_and_buffers_leave_the_augmenter_out(tmp_path):
    augmenter = fitted()
    model = make(augmenter, ratio=lambda step: 0.5)
    model.learn(100)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").stat().st_size < 200_000
    model = SAC.load(tmp_path / "model.zip", env=gym.make("Pendulum-v1"))
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    buffer = model.replay_buffer
    assert type(buffer) is AugmentedReplayBuffer and buffer.augmenter is None and buffer.size() == 100
    assert (buffer.sample(16).rewards > -18).all()  # all of them real
    buffer.attach(augmenter, ratio=0.5)
    assert int((buffer.sample(16).rewards < -18).sum()) == 8
    model.learn(50, callback=AugmentCallback())
    assert len(augmenter.replay.online) == 150


def test_what_does_not_fit_is_refused_in_one_line():
    box, action = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,))
    fields = spaces.Dict({"observation": box, "goal": box})
    with pytest.raises(InputError, match=r"observations must be vectors .* got Dict.*FlattenObservation"):
        AugmentedReplayBuffer(10, fields, action, augmenter=Augmenter(PENDULUM))
    with pytest.raises(InputError, match=r"actions must be vectors .* got Discrete"):
        AugmentedReplayBuffer(10, box, spaces.Discrete(2), augmenter=Augmenter(PENDULUM))
    with pytest.raises(
        InputError, match=r"augmenter has observations \[4\] and actions \[1\], the environment has \[3\]"
    ):
        AugmentedReplayBuffer(10, box, action, augmenter=Augmenter(TransitionSpec(4, 1)))
    with pytest.raises(InputError, match="ratio is 2"):
        AugmentedReplayBuffer(10, box, action, augmenter=Augmenter(PENDULUM), ratio=2)
    with pytest.raises(InputError, match="AugmentCallback needs a model with replay_buffer_class"):
        SAC("MlpPolicy", "Pendulum-v1").learn(10, callback=AugmentCallback())


def test_normalized_batches_are_not_mixed_by_the_plain_proxy():
    model = SAC("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1")), learning_starts=10, device="cpu")
    model.replay_buffer = fitted().wrap(model.replay_buffer)
    with pytest.raises(InputError, match=r"use integrations\.sb3\.AugmentedReplayBuffer"):
        model.learn(20)
