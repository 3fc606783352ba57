"""A task: a dataset with its environment, its score, and the run's one reward transform."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.local import local_ids
from o2o_diffusion.data.scores import reference_scores
from o2o_diffusion.environments.environment import AgentEnvironment, make_environment
from o2o_diffusion.environments.recording import Recording, record
from o2o_diffusion.errors import InputError
from o2o_diffusion.types import EnvironmentSpec, Episode, RewardTransform, TransitionSpec

REWARDS = ("auto", "raw", "range", "minus_one")
RETURN_RANGE = 1000.0
LOCOMOTION = ("HalfCheetah", "Hopper", "Walker2d", "Ant-", "Humanoid-", "Swimmer")


class Task:
    """Data and environment of a run. Raises InputError, one line, when they do not fit together.

    A dataset that is missing and has a `recording` is recorded first. Without a dataset the run starts from nothing.
    """

    @dataclass(frozen=True)
    class Config:
        """Which dataset, and how its rewards are scaled for the learner."""

        dataset: Annotated[str | None, "Minari id, Minari folder, D4RL .hdf5, or .npz; null: start from nothing"] = None
        environment: Annotated[str | None, "Gymnasium id; null: the dataset's own"] = None
        max_episode_steps: Annotated[int | None, "time limit; null: the dataset's own"] = None
        reward: Annotated[str, "auto, raw, range (1000 / spread of episode returns), or minus_one (r - 1)"] = "auto"
        reward_scale: Annotated[float, "factor after `reward`"] = 1.0
        reward_bias: Annotated[float, "added after the factor"] = 0.0
        failure_reward: Annotated[float | None, "raw reward at every step of an episode that only fails"] = None
        recording: Annotated[Recording | None, "how to make the dataset when it is missing"] = None

    def __init__(self, config: Config):
        if config.reward not in REWARDS:
            raise InputError(f"setting 'task.reward': '{config.reward}' is not one of {', '.join(REWARDS)}")
        self.config = config
        recording = config.recording
        if recording is not None and recording.dataset == config.dataset and config.dataset not in local_ids():
            print(f"dataset {config.dataset} is missing: recording it", flush=True)
            try:
                record(recording)
            except InputError:
                if config.dataset not in local_ids():  # or another run was faster
                    raise
        dataset = load_dataset(config.dataset) if config.dataset else None
        self.environment = self._environment(dataset)
        environment = make_environment(self.environment, dataset.observation_keys if dataset else ())
        self.dataset = dataset or _nothing(environment)
        check_environment(self.dataset, environment)
        environment.close()
        self.scores = self.dataset.scores or reference_scores(self.environment.id)
        self.transform = reward_transform(config, self.dataset.episodes, self.environment.id)

    @property
    def description(self) -> str:
        """Dataset, environment and sizes, in a line."""
        data, spec = self.dataset, self.dataset.spec
        return (
            f"{data.name} ({data.num_transitions:,} transitions in {len(data.episodes):,} episodes) in "
            f"{self.environment.id}, observations [{spec.observation_dim}], actions [{spec.action_dim}]"
        )

    def make_environment(self) -> AgentEnvironment:
        """A new environment to train in."""
        return make_environment(self.environment, self.dataset.observation_keys)

    def _environment(self, dataset: Dataset | None) -> EnvironmentSpec:
        own = dataset.environment if dataset else None
        if self.config.environment is not None and (own is None or own.id != self.config.environment):
            own = EnvironmentSpec(self.config.environment)
        if own is None:
            if dataset is None:
                raise InputError("the task names neither dataset nor environment; set task.dataset=<Minari id or path>")
            raise InputError(f"{dataset.name} names no environment; set task.environment=<Gymnasium id>")
        limit = self.config.max_episode_steps or own.max_episode_steps
        return EnvironmentSpec(own.id, own.kwargs, limit)


def check_environment(dataset: Dataset, environment: AgentEnvironment) -> None:
    """Raises InputError unless the dataset's transitions could come from `environment`; both shapes are shown."""
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
    """The run's one affine transform.

    `range` divides by the spread of the dataset's episode returns, times 1000 (IQL's locomotion scale); `minus_one`
    makes sparse 0/1 rewards -1/0 (IQL's AntMaze scale). `auto` takes `minus_one` for 0/1 rewards, `range` for
    locomotion, and else leaves rewards raw.
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
    """No episodes, with the dimensions of `environment`."""
    observation, action = environment.observation_space.sample(), environment.action_space.sample()
    name = environment.spec.id if environment.spec else "environment"
    return Dataset(name, (), TransitionSpec(len(observation), len(action)))
