import os

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run on one thread and one route, so that sums are always taken in the same order."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def pendulum_table(tmp_path_factory) -> str:
    """An .npz of two random Pendulum-v1 episodes, 400 transitions; Pendulum only ever truncates."""
    import gymnasium as gym

    environment, random = gym.make("Pendulum-v1"), np.random.default_rng(0)
    columns = {
        name: [] for name in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    }
    for seed in range(2):
        observation, truncated = environment.reset(seed=seed)[0], False
        while not truncated:
            action = random.uniform(-1, 1, 1).astype(np.float32)
            following, reward, terminated, truncated, _ = environment.step(2 * action)
            step = (observation, action, reward, following, terminated, truncated)
            for column, value in zip(columns.values(), step, strict=True):
                column.append(value)
            observation = following
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    np.savez(path, **{name: np.array(column) for name, column in columns.items()})
    return str(path)


@pytest.fixture
def tiny_run(pendulum_table):
    """Overrides of a run of some seconds: 40 updates, 20 steps of warm-up, 60 of fine-tuning, two refreshes."""
    return [
        f"task.dataset={pendulum_table}",
        "task.environment=Pendulum-v1",
        "pretrain_updates=40",
        "warmup_steps=20",
        "online_steps=80",
        "updates_per_step=1",
        "eval_interval=40",
        "eval_episodes=1",
        "final_eval_episodes=2",
        "log_interval=10",
        "threads=1",
        "learner.hidden=[16,16]",
        "learner.batch_size=32",
        "sampler.ramp=50",
        "logger.progress=false",
    ]


def known_overrides(group: str, name: str, values: dict) -> list[str]:
    """The named component, with those of `values` that it has as settings."""
    from dataclasses import fields

    from omegaconf import OmegaConf

    from o2o_diffusion.settings import CONFIGS, locate

    target = locate(str(OmegaConf.load(CONFIGS / group / f"{name}.yaml").target))
    known = {field.name for field in fields(target.Config)}
    return [f"{group}={name}", *(f"{group}.{key}={value}" for key, value in values.items() if key in known)]


@pytest.fixture(scope="session")
def tiny_generator():
    """Overrides that make a named generator's refreshes short: after 30 and 60 online steps, each one accepted."""
    tiny = {
        "width": 16, "depth": 1, "batch_size": 32, "updates": 20, "refresh_updates": 10, "energy_updates": 5,
        "curiosity_updates": 5, "pool_size": 40, "first_refresh": 30, "refresh_interval": 30, "num_samples": 50,
        "solver": "dpm", "num_steps": 4, "max_auc": 1,
    }  # fmt: skip
    return lambda name: known_overrides("generator", name, tiny)


@pytest.fixture(scope="session")
def tiny_learner():
    """Overrides that make a named learner update within a tiny run: short blocks, episodes and warm-up."""
    tiny = {"block_steps": 20, "warmup_steps": 20, "random_steps": 20}
    return lambda name: [*known_overrides("learner", name, tiny), "task.max_episode_steps=20"]


@pytest.fixture
def tiny_cfdg(tiny_generator):
    """Overrides that make CFDG's refreshes short: after 30 and 60 online steps, 20 and 10 updates."""
    return tiny_generator("cfdg")
