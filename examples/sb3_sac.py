"""Stable-Baselines3's SAC with generated rows in half of each batch. Shows usage, not a benefit.

About 80 seconds on one CPU core:

    pip install '.[sb3]' && python examples/sb3_sac.py
"""

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from o2o_diffusion import Augmenter, TransitionSpec
from o2o_diffusion.integrations.sb3 import AugmentCallback, AugmentedReplayBuffer

SETTINGS = ["updates=1000", "refresh_updates=500", "first_refresh=1000", "refresh_interval=1000", "num_samples=10000"]

torch.set_num_threads(1)
environment, evaluation = (make_vec_env("Pendulum-v1", seed=seed) for seed in (0, 1_000))
augmenter = Augmenter(TransitionSpec(observation_dim=3, action_dim=1), settings=SETTINGS)
model = SAC(
    "MlpPolicy",
    environment,
    learning_rate=1e-3,
    learning_starts=1_000,
    replay_buffer_class=AugmentedReplayBuffer,
    replay_buffer_kwargs={"augmenter": augmenter, "ratio": 0.5},
    seed=0,
    device="cpu",
)
print(f"before: {evaluate_policy(model, evaluation, n_eval_episodes=10)[0]:.0f}")
model.learn(4_000, callback=AugmentCallback())
print(f"after {model.num_timesteps} steps: {evaluate_policy(model, evaluation, n_eval_episodes=10)[0]:.0f}")
print(f"{augmenter.refreshes} refreshes; the rows of the last one are {augmenter.report()}")
