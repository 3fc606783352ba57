"""Record behaviors acting in an environment as a Minari dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import numpy as np
from annotated_types import Ge, Gt

from o2o_diffusion.data import local
from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.data.writing import NAMESPACE, new_dataset, write_dataset
from o2o_diffusion.environments.behaviors.factory import Behavior, make_behavior
from o2o_diffusion.environments.environment import make_raw_environment
from o2o_diffusion.progress import progress_bar
from o2o_diffusion.types import EnvironmentSpec

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer


@dataclass(frozen=True)
class Stage:
    """A part of a recording with one behavior."""

    behavior: Annotated[str, "random, waypoints, balance, reach, or a packaged policy (halfcheetah/step_52473)"] = (
        "random"
    )
    noise: Annotated[float, "standard deviation of Gaussian noise added to actions in [-1, 1]", Ge(0)] = 0.0
    share: Annotated[float, "share of the recording's steps, relative to the other stages", Gt(0)] = 1.0
    stochastic: Annotated[bool, "whether a policy samples its actions"] = False


@dataclass(frozen=True)
class Recording:
    """Settings of a recording. Stages run in order and consist of complete episodes."""

    dataset: Annotated[str, "id of the new Minari dataset, starting with o2o/"] = "o2o/recording-v0"
    environment: Annotated[str, "id in Gymnasium's registry"] = "HalfCheetah-v5"
    kwargs: Annotated[dict[str, Any], "keyword arguments of the environment"] = field(default_factory=dict)
    max_episode_steps: Annotated[
        int | None, "steps until an episode is truncated; null: the registered limit", Ge(1)
    ] = None
    num_steps: Annotated[int, "minimum number of environment steps; the last episode is completed", Ge(1)] = 100_000
    seed: Annotated[int, "seed of the environment and all noise", Ge(0)] = 0
    stages: Annotated[list[Stage], "behaviors, in order"] = field(default_factory=lambda: [Stage()])

    @property
    def spec(self) -> EnvironmentSpec:
        """The recorded environment."""
        return EnvironmentSpec(self.environment, self.kwargs, self.max_episode_steps)


def record(recording: Recording, *, progress: bool = True) -> Path:
    """Record a dataset into Minari's store; returns its folder.

    Raises InputError if the id is taken, the settings do not fit, or the store cannot be written to.
    """
    environment = make_raw_environment(recording.spec)
    with (
        contextlib.closing(environment),
        new_dataset(recording.dataset, NAMESPACE) as data,
        progress_bar(f"record {recording.dataset}", recording.num_steps, unit="step", disable=not progress) as bar,
    ):
        buffers = []
        for buffer in _episodes(recording, environment):
            buffers.append(buffer)
            bar.update(min(len(buffer), bar.total - bar.n))
        behaviors = ", ".join(dict.fromkeys(stage.behavior for stage in recording.stages))
        metadata = {"algorithm_name": behaviors, "recording": asdict(recording)}
        write_dataset(data, recording.dataset, environment, buffers, metadata)
    return local.folder_of(recording.dataset)


def _episodes(recording: Recording, environment: gym.Env) -> Iterator[EpisodeBuffer]:
    """Yield the episodes of all stages."""
    total = sum(stage.share for stage in recording.stages)
    random = np.random.default_rng(recording.seed)
    bounds = ActionBounds.of(environment.action_space, recording.environment)
    seed, steps, target = recording.seed, 0, 0.0
    for stage in recording.stages:
        behavior = make_behavior(stage.behavior, environment, stochastic=stage.stochastic, random=random)
        target += recording.num_steps * stage.share / total
        while steps < target - 0.5:
            episode = _episode(environment, behavior, stage.noise, bounds, random, seed)
            seed = None  # later episodes continue the environment's random stream
            steps += len(episode)
            yield episode


def _episode(
    environment: gym.Env,
    behavior: Behavior,
    noise: float,
    bounds: ActionBounds,
    random: np.random.Generator,
    seed: int | None,
) -> EpisodeBuffer:
    """Record one complete episode, with raw observations and actions in the environment's box."""
    from minari.data_collector import EpisodeBuffer

    observation, _ = environment.reset(seed=seed)
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = behavior(observation)
        if noise:
            action = action + noise * random.standard_normal(len(action))
        action = bounds.to_box(action.astype(np.float32))
        observation, reward, terminated, truncated, _ = environment.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    ends = np.zeros((2, len(rewards)), dtype=bool)
    ends[:, -1] = terminated, truncated
    fields: dict[str, Any] = {  # annotated as lists, but Minari accepts arrays
        "observations": _stack(observations),
        "actions": np.stack(actions),
        "rewards": np.array(rewards, dtype=np.float64),
        "terminations": ends[0],
        "truncations": ends[1],
    }
    return EpisodeBuffer(**fields)


def _stack(observations: list[Any]) -> Any:
    """Stack observations to [T+1, .] arrays, by field for dicts."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
