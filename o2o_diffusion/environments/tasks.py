"""A task: a dataset with its environment, reference scores, and the run's reward transform."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.local import local_ids
from o2o_diffusion.data.scores import ReferenceScores, reference_scores
from o2o_diffusion.data.spaces import keys_of_width
from o2o_diffusion.environments.environment import AgentEnvironment, make_environment, make_raw_environment
from o2o_diffusion.environments.physics import Physics, show_physics
from o2o_diffusion.environments.recording import Recording, record
from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import EnvironmentSpec, Episode, RewardTransform, TransitionSpec

RETURN_RANGE = 1000.0
LOCOMOTION = ("HalfCheetah", "Hopper", "Walker2d", "Ant-", "Humanoid-", "Swimmer")


class Task:
    """Data and environment of a run.

    A missing dataset with a `recording` is recorded first. Without a dataset, the run starts from scratch. Raises
    InputError, one line, if data and environment do not match.
    """

    @dataclass(frozen=True)
    class Config:
        """Dataset, environment, and reward scaling for the learner."""

        dataset: Annotated[str | None, "Minari id, Minari folder, D4RL .hdf5, or .npz; null: start from scratch"] = None
        environment: Annotated[str | None, "Gymnasium id; null: the dataset's own"] = None
        max_episode_steps: Annotated[int | None, "time limit; null: the dataset's own", Ge(1)] = None
        physics: Annotated[Physics, "physics of the environment, relative to the data's"] = field(
            default_factory=Physics
        )
        episodes: Annotated[int | None, "episodes of the dataset to use, spread over all of it; null: all", Ge(1)] = (
            None
        )
        fraction: Annotated[float | None, "the same as a share of the dataset's episodes", Gt(0), Le(1)] = None
        subset_seed: Annotated[int, "seed that selects the episodes", Ge(0)] = 0
        reward: Annotated[
            Literal["auto", "raw", "range", "minus_one"],
            "auto, raw, range (1000 / spread of episode returns), or minus_one (r - 1)",
        ] = "auto"
        reward_scale: Annotated[float, "factor applied after `reward`", Gt(0)] = 1.0
        reward_bias: Annotated[float, "added after `reward_scale`"] = 0.0
        failure_reward: Annotated[float | None, "raw reward at every step of a failed episode"] = None
        reference_returns: Annotated[
            tuple[float, float] | None, "raw returns that score 0 and 100; null: the dataset's, or D4RL's"
        ] = None
        recording: Annotated[Recording | None, "recording that creates the dataset if it is missing"] = None

        def __post_init__(self):
            if self.episodes is not None and self.fraction is not None:
                raise ValueError("'episodes' and 'fraction' are both set, expected at most one")
            if self.dataset is None and (self.episodes or self.fraction):
                raise ValueError("'episodes' and 'fraction' select from a dataset, but 'dataset' is not set")
            if self.reference_returns is not None and self.reference_returns[0] >= self.reference_returns[1]:
                raise ValueError(f"'reference_returns' is {self.reference_returns}, expected the lower one first")

    def __init__(self, config: Config):
        self.config = config
        recording = config.recording
        if recording is not None and recording.dataset == config.dataset and config.dataset not in local_ids():
            print(f"dataset {config.dataset} is missing: recording it", flush=True)
            try:
                record(recording)
            except InputError:
                if config.dataset not in local_ids():  # unless another run recorded it first
                    raise
        dataset = load_dataset(config.dataset) if config.dataset else None
        self.recorded_episodes = dataset.num_episodes if dataset else 0
        dataset = self._subset(dataset) if dataset else None
        self.environment = self._environment(dataset)
        environment = make_environment(self.environment)
        self.dataset = dataset or _nothing(environment)
        check_environment(self.dataset, environment)
        environment.close()
        data_environment = self.dataset.environment or replace(self.environment, physics={})
        self.spec = replace(self.dataset.spec, environment=self.environment, data_environment=data_environment)
        self.scores = self.dataset.scores or reference_scores(self.environment.id)
        if config.reference_returns is not None:
            self.scores = ReferenceScores(*config.reference_returns, source="the task's references")
        self.transform = reward_transform(config, self.dataset.episodes, self.environment.id)

    @property
    def description(self) -> str:
        """Dataset, environment and sizes, on one line."""
        data, spec = self.dataset, self.spec
        whole, used = f"{self.recorded_episodes:,}", f"{data.num_episodes:,}"
        episodes = used if used == whole else f"{used} of {whole}"
        physics = show_physics(self.environment.physics)
        return (
            f"{data.name} ({data.num_transitions:,} transitions in {episodes} episodes) in "
            f"{self.environment.id}{physics}, observations [{spec.observation_dim}], actions [{spec.action_dim}]"
        )

    def make_environment(self) -> AgentEnvironment:
        """Create a new training environment."""
        return make_environment(self.environment)

    def load(self, replay: Replay) -> None:
        """Move the dataset's episodes into `replay` and free them here."""
        replay.load(self.dataset.episodes)
        self.dataset = self.dataset.without_episodes()

    def _subset(self, dataset: Dataset) -> Dataset:
        """The part of `dataset` that the settings ask for."""
        count = self.config.episodes
        if self.config.fraction is not None:
            count = max(1, round(self.config.fraction * dataset.num_episodes))
        return dataset if count is None else dataset.subset(count, self.config.subset_seed)

    def _environment(self, dataset: Dataset | None) -> EnvironmentSpec:
        own = dataset.environment if dataset else None
        if self.config.environment is not None and (own is None or own.id != self.config.environment):
            own = EnvironmentSpec(self.config.environment)
        if own is None:
            if dataset is None:
                raise InputError("the task names neither dataset nor environment; set task.dataset=<Minari id or path>")
            raise InputError(f"{dataset.name} names no environment; set task.environment=<Gymnasium id>")
        limit = self.config.max_episode_steps or own.max_episode_steps
        keys, physics = dataset.observation_keys if dataset else (), self.config.physics.factors
        if dataset is not None and dataset.environment is None:  # a table has no fields
            raw = make_raw_environment(own)
            keys = keys_of_width(raw.observation_space, dataset.spec.observation_dim)
            raw.close()
        return replace(own, max_episode_steps=limit, observation_keys=keys, physics=physics)


def check_environment(dataset: Dataset, environment: AgentEnvironment) -> None:
    """Raise InputError unless the dataset's spaces match `environment`; the message shows both."""
    name = environment.spec.id if environment.spec else "the environment"
    observations, actions = environment.observation_space.shape, environment.action_space.shape
    if observations != (dataset.spec.observation_dim,) or actions != (dataset.spec.action_dim,):
        raise InputError(
            f"{dataset.name}: observations [{dataset.spec.observation_dim}] and actions [{dataset.spec.action_dim}] do "
            f"not fit {name}, which has observations {list(observations or ())} and actions {list(actions or ())}"
        )
    theirs, ours = environment.bounds, dataset.action_bounds
    if ours is not None and not (np.allclose(ours.low, theirs.low) and np.allclose(ours.high, theirs.high)):
        raise InputError(
            f"{dataset.name}: actions between {ours.low.tolist()} and {ours.high.tolist()} do not fit {name}, which "
            f"takes {theirs.low.tolist()} to {theirs.high.tolist()}"
        )


def reward_transform(config: Task.Config, episodes: Sequence[Episode], environment_id: str) -> RewardTransform:
    """The run's affine reward transform.

    `range` multiplies by 1000 / (max - min episode return of the dataset) (IQL's locomotion scale); `minus_one` maps
    sparse 0/1 rewards to -1/0 (IQL's AntMaze scale). `auto` selects `minus_one` for 0/1 rewards, `range` for
    locomotion, and raw rewards otherwise.
    """
    kind = config.reward
    returns = [float(episode.rewards.sum()) for episode in episodes]
    if kind == "auto":
        sparse = bool(episodes) and all(((e.rewards == 0) | (e.rewards == 1)).all() for e in episodes)
        spread = len(episodes) > 1 and environment_id.startswith(LOCOMOTION) and max(returns) > min(returns)
        kind = "minus_one" if sparse else "range" if spread else "raw"
    if kind == "range" and not (returns and max(returns) > min(returns)):
        raise InputError("task.reward=range needs a dataset with episodes of different returns")
    scale, bias = {
        "raw": lambda: (1.0, 0.0),
        "range": lambda: (RETURN_RANGE / (max(returns) - min(returns)), 0.0),
        "minus_one": lambda: (1.0, -1.0),
    }[kind]()
    return RewardTransform(config.reward_scale * scale, config.reward_scale * bias + config.reward_bias)


def _nothing(environment: AgentEnvironment) -> Dataset:
    """An empty dataset with the dimensions of `environment`."""
    observation, action = environment.observation_space.sample(), environment.action_space.sample()
    name = environment.spec.id if environment.spec else "environment"
    return Dataset(name, (), TransitionSpec(len(observation), len(action)))
