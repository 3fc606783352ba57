"""d3rlpy's TD3+BC on a recorded Pendulum-v1 dataset, with and without generated rows; two minutes on one core.

Use a separate virtual environment, because d3rlpy requires gymnasium 1.0:

    pip install 'torch<2.14' d3rlpy diffusers accelerate omegaconf safetensors && pip install --no-deps .
    python examples/d3rlpy_offline.py

This example shows usage, not a benefit: at this size, returns vary by hundreds between seeds.
"""

import argparse
import logging

import d3rlpy
import gymnasium as gym
import numpy as np
import structlog
from d3rlpy.algos import TD3PlusBCConfig
from d3rlpy.dataset import ReplayBufferBase
from d3rlpy.logging import NoopAdapterFactory
from d3rlpy.metrics import evaluate_qlearning_with_environment

from o2o_diffusion import Augmenter
from o2o_diffusion.integrations.d3rlpy import mixed, to_arrays

TORQUE = 2.0
"""Pendulum's actions are in [-2, 2]."""


def behavior(observation: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """[1] very noisy torque: swing the pendulum up, then balance it."""
    cosine, sine, velocity = observation
    energy = velocity**2 / 6 + 5 * (cosine - 1)  # 0 at rest, upright
    torque = -10 * np.arctan2(sine, cosine) - 2 * velocity if cosine > 0.8 else -2 * np.sign(velocity * energy)
    return np.clip([torque + random.normal(0, 1)], -TORQUE, TORQUE).astype(np.float32)


def record(steps: int, seed: int) -> d3rlpy.dataset.ReplayBuffer:
    """Record episodes of 200 steps; Pendulum never terminates, only the time limit ends an episode."""
    env, random = gym.make("Pendulum-v1"), np.random.default_rng(seed)
    columns: dict[str, list] = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    observation, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = behavior(observation, random)
        following, reward, terminated, truncated, _ = env.step(action)
        for name, value in zip(columns, (observation, action, reward, terminated, truncated), strict=True):
            columns[name].append(value)
        observation = env.reset()[0] if truncated else following
    arrays = {name: np.array(values, np.float32) for name, values in columns.items()}
    return d3rlpy.dataset.MDPDataset(**arrays, action_space=d3rlpy.ActionSpace.CONTINUOUS)


def train(real: ReplayBufferBase, dataset: ReplayBufferBase, steps: int, seed: int) -> float:
    """Train for `steps` updates on batches of `dataset`; returns the mean return of 20 episodes."""
    d3rlpy.seed(seed)
    algorithm = TD3PlusBCConfig(
        batch_size=128, gamma=0.98, action_scaler=d3rlpy.preprocessing.MinMaxActionScaler(-TORQUE, TORQUE)
    ).create()
    algorithm.build_with_dataset(real)  # a mixture only draws batches
    algorithm.fit(
        dataset,
        n_steps=steps,
        n_steps_per_epoch=steps,
        show_progress=False,
        logger_adapter=NoopAdapterFactory(),
    )
    env = gym.make("Pendulum-v1")
    env.reset(seed=1_000 + seed)
    return evaluate_qlearning_with_environment(algorithm, env, n_trials=20)


def main() -> None:
    """Record data, fit the generator, train without and with generated rows, print evaluations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000, help="recorded transitions")
    parser.add_argument("--steps", type=int, default=3_000, help="updates of each training")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of generated rows in a batch")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # d3rlpy logs a lot

    real = record(arguments.rows, arguments.seed)
    returns = [episode.compute_return() for episode in real.episodes]
    print(f"recorded {len(returns)} episodes, mean return {np.mean(returns):.0f}", flush=True)
    augmenter = Augmenter.fit(
        to_arrays(real),
        settings=["updates=2000", "width=128", "num_samples=20000"],
        seed=arguments.seed,
        action_low=-TORQUE,
        action_high=TORQUE,
    )
    for dataset, name in ((real, "real rows"), (mixed(real, augmenter, 20_000, arguments.ratio), "real and generated")):
        result = train(real, dataset, arguments.steps, arguments.seed)
        print(f"{name}: mean return {result:.0f} after {arguments.steps} updates", flush=True)


if __name__ == "__main__":
    main()
