"""Recording: behaviours act in an environment, and what happens becomes a Minari dataset."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from o2o_diffusion.behaviours.factory import Behaviour, make_behaviour
from o2o_diffusion.data import local
from o2o_diffusion.data.scores import reference_scores
from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.envs import EnvironmentSpec, make_raw_environment
from o2o_diffusion.errors import InputError

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

NAMESPACE = "o2o"


@dataclass(frozen=True)
class Stage:
    """A stretch of a recording with one behaviour."""

    behaviour: Annotated[str, "random, waypoints, or a packaged policy such as halfcheetah/step_50000"] = "random"
    noise: Annotated[float, "standard deviation of Gaussian noise added to actions, which are in [-1, 1]"] = 0.0
    share: Annotated[float, "part of the recording's steps, relative to the other stages"] = 1.0
    stochastic: Annotated[bool, "whether a policy samples its actions"] = False


@dataclass(frozen=True)
class Recording:
    """What to record. Stages follow each other, each ends with an episode, and none is cut short."""

    environment: Annotated[str, "id in Gymnasium's registry"] = "HalfCheetah-v5"
    kwargs: Annotated[dict[str, Any], "keyword arguments of the environment"] = field(default_factory=dict)
    max_episode_steps: Annotated[int | None, "steps until an episode is truncated; null: the registered limit"] = None
    num_steps: Annotated[int, "environment steps to record, at least; the last episode is finished"] = 100_000
    seed: Annotated[int, "seed of the environment and of all noise"] = 0
    stages: Annotated[list[Stage], "behaviours in order"] = field(default_factory=lambda: [Stage()])

    @property
    def spec(self) -> EnvironmentSpec:
        """The environment that is recorded."""
        return EnvironmentSpec(self.environment, self.kwargs, self.max_episode_steps)


def check_recording_id(dataset_id: str) -> Path:
    """Where the recording `dataset_id` will lie; raises InputError unless it is valid, ours and not taken."""
    folder = local.folder_of(dataset_id)
    if not dataset_id.startswith(f"{NAMESPACE}/"):
        raise InputError(f"{dataset_id!r} cannot be recorded: ids of recordings begin with '{NAMESPACE}/'")
    if folder.exists():
        raise InputError(f"{dataset_id!r} exists in {folder}; recordings never overwrite, choose another id or version")
    return folder


def record(recording: Recording, dataset_id: str, *, progress: bool = True) -> Path:
    """Record and write a dataset that Minari lists; returns its folder.

    It is built under a hidden name beside its destination and renamed, so that nothing half-written is ever seen.
    Raises InputError where the id is taken, the settings do not fit, or the store cannot be written.
    """
    folder = check_recording_id(dataset_id)
    environment = make_raw_environment(recording.spec)
    try:
        local.store().mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".recording-", dir=local.store()))
    except OSError as error:
        raise InputError(f"recordings cannot be written to {local.store()}: {error}") from error
    try:
        with tqdm(total=recording.num_steps, desc=f"record {dataset_id}", unit="step", disable=not progress) as bar:
            buffers = []
            for buffer in _episodes(recording, environment):
                buffers.append(buffer)
                bar.update(min(len(buffer), bar.total - bar.n))
        _write(building / "data", dataset_id, recording, environment, buffers)
        _publish(building, folder, dataset_id)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        environment.close()
    return folder


def _episodes(recording: Recording, environment: gym.Env) -> Iterator[EpisodeBuffer]:
    """The episodes of all stages."""
    total = sum(stage.share for stage in recording.stages)
    if recording.num_steps < 1 or not all(stage.share > 0 and stage.noise >= 0 for stage in recording.stages):
        raise InputError(f"{recording} cannot be recorded: num_steps and share must be positive, noise not negative")
    random = np.random.default_rng(recording.seed)
    bounds = ActionBounds.of(environment.action_space, recording.environment)
    seed, steps, target = recording.seed, 0, 0.0
    for stage in recording.stages:
        behaviour = make_behaviour(stage.behaviour, environment, stochastic=stage.stochastic, random=random)
        target += recording.num_steps * stage.share / total
        while steps < target - 0.5:
            episode = _episode(environment, behaviour, stage.noise, bounds, random, seed)
            seed = None  # later episodes continue the environment's random numbers
            steps += len(episode)
            yield episode


def _episode(
    environment: gym.Env,
    behaviour: Behaviour,
    noise: float,
    bounds: ActionBounds,
    random: np.random.Generator,
    seed: int | None,
) -> EpisodeBuffer:
    """One whole episode with raw observations and actions of the environment's own box."""
    from minari.data_collector import EpisodeBuffer

    observation, _ = environment.reset(seed=seed)
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = behaviour(observation)
        if noise:
            action = action + noise * random.standard_normal(len(action))
        action = bounds.to_box(action.astype(np.float32))
        observation, reward, terminated, truncated, _ = environment.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    ends = np.zeros((2, len(rewards)), dtype=bool)
    ends[:, -1] = terminated, truncated
    return EpisodeBuffer(
        observations=_stack(observations),
        actions=np.stack(actions),
        rewards=np.array(rewards, dtype=np.float64),
        terminations=ends[0],
        truncations=ends[1],
    )


def _stack(observations: list[Any]) -> Any:
    """[T+1, .] arrays, by field for dict observations."""
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def _write(
    data: Path, dataset_id: str, recording: Recording, environment: gym.Env, buffers: list[EpisodeBuffer]
) -> None:
    """The dataset's files, in Minari's own HDF5 format."""
    import minari
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.new(data, environment.observation_space, environment.action_space, environment.spec)
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "author": {"o2o_diffusion"},
        "algorithm_name": ", ".join(dict.fromkeys(stage.behaviour for stage in recording.stages)),
        "description": f"Recorded by o2o_diffusion in {recording.environment}.",
        "recording": asdict(recording),
        "requirements": [f"{name}=={version(name)}" for name in ("gymnasium", "gymnasium-robotics", "mujoco")],
    }
    if scores := reference_scores(recording.environment):
        metadata |= {
            "ref_min_score": scores.minimum,
            "ref_max_score": scores.maximum,
            "num_episodes_average_score": 100,
        }
    storage.update_metadata(metadata)
    storage.update_episodes(buffers)


def _publish(building: Path, folder: Path, dataset_id: str) -> None:
    """Give a finished dataset its name; the first of two simultaneous recordings wins."""
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = dataset_id.rpartition("/")[0]
    if namespace not in list_local_namespaces():
        create_namespace(namespace)
    building.chmod(0o755)  # mkdtemp makes private folders
    try:
        building.rename(folder)
    except OSError as error:
        raise InputError(f"{dataset_id!r} cannot be written to {folder}: {error}") from error
