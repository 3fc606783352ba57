import os
import sys
from dataclasses import fields
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # benchmarks; after the installed packages

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub reads it

import numpy as np
import pytest
import torch
from builders import tiny

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import find, load, locate
from o2o_diffusion.types import Source, Transitions


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run on one thread and one route, so that sums are always taken in the same order."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def draw():
    """`generator.sample` with the online label, no policy and no real rows, unless they are given."""

    def draw(
        generator: Generator,
        size: int,
        *,
        source: Source = Source.GENERATED_ONLINE,
        replay: Replay | None = None,
        agent: Agent | None = None,
    ) -> Transitions:
        replay = Replay(generator.spec) if replay is None else replay
        return generator.sample(size, source=source, replay=replay, agent=NoAgent() if agent is None else agent)

    return draw


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
def short_run(pendulum_table, monkeypatch) -> list[str]:
    """Overrides of a run of some seconds: 40 updates, 20 steps of warm-up, 60 of fine-tuning; no component's own.

    In this process, its expected time is not measured, which would take as long again.
    """
    monkeypatch.setattr("o2o_diffusion.training.finetune.expected_seconds", lambda *parts: 60.0)
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
        "logger.progress=false",
    ]


@pytest.fixture
def tiny_run(short_run) -> list[str]:
    """The same with a small learner of the usual kind and a ramp of 50 rows."""
    return [*short_run, "learner.hidden=[16,16]", "learner.batch_size=32", "sampler.ramp=50"]


@pytest.fixture(scope="session")
def tiny_generator():
    """Overrides that make a named generator's refreshes short: after 30 and 60 online steps, each one accepted."""

    def overrides(name: str) -> list[str]:
        has_gate = "gate" in {field.name for field in fields(target("generator", name).Config)}
        return [*tiny("generator", name), *(["generator.gate.rows=0"] if has_gate else [])]

    return overrides


@pytest.fixture(scope="session")
def tiny_learner():
    """Overrides that make a named learner update within a tiny run: short blocks, warm-up and episodes."""
    return lambda name: [*tiny("learner", name), "task.max_episode_steps=20"]


@pytest.fixture
def tiny_cfdg(tiny_generator) -> list[str]:
    """Overrides that make CFDG's refreshes short: after 30 and 60 online steps, 12 updates each."""
    return tiny_generator("cfdg")


def target(group: str, name: str) -> type:
    """The class of a named component."""
    return locate(str(load(find(group, name)).target))
