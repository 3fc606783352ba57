"""Batches, replays, agents and small components that the tests share."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import gymnasium as gym
import torch
from omegaconf import OmegaConf
from torch import Tensor

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.actors import Gaussian
from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.settings import CONFIGS, compose, locate
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec

SPEC = TransitionSpec(observation_dim=3, action_dim=2)
DISCOUNT = 0.99
PRETRAIN, WARMUP, FINETUNE = Phase("pretrain", updates=1), Phase("warmup", env_steps=1), Phase("finetune", env_steps=1)

LARGEST = {"updates": 12, "steps": 20, "size": 32, "samples": 50, "refresh": 30, "interval": 30, "width": 16, "dim": 8}
LARGEST |= {"ramp": 100, "recent": 100, "gate": 50, "restarts": 1}
"""Caps of integer settings by the last part of their names, so that a new component is small without being known."""
DEPTH = 1
HIDDEN = [16, 16]


def raw_batch(
    size: int = 64, spec: TransitionSpec = SPEC, *, seed: int = 0, center: float = 0.0, **fields: Any
) -> Transitions:
    """Random rows around `center` with raw rewards, a few terminations and no discounts."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    observations, actions = center + normal(size, spec.observation_dim), normal(size, spec.action_dim).tanh()
    rewards, next_observations = normal(size), center + normal(size, spec.observation_dim)
    terminations = (normal(size) > 1).float()
    return Transitions.create(observations, actions, rewards, next_observations, terminations, **fields)


def make_batch(size: int = 64, spec: TransitionSpec = SPEC, *, seed: int = 0, **changes: Any) -> Transitions:
    """The same rows as a learner gets them: with discounts, and `changes` to any field."""
    batch = raw_batch(size, spec, seed=seed)
    return batch.where(discounts=DISCOUNT * (1 - batch.terminations)).where(**changes)


def one_step(states: Tensor, actions: Tensor, rewards: Tensor) -> Transitions:
    """Scaled rows of a bandit: every step ends its episode."""
    ones = torch.ones(len(states))
    return Transitions.create(states, actions, rewards, states, ones, discounts=torch.zeros(len(states)))


def with_equal_draws(learner: Any, *functions: Callable[[], Any]) -> list[Any]:
    """The results of the functions, each called with the same state of `learner.rng`."""
    state, results = learner.rng.state_dict(), []
    for function in functions:
        learner.rng.load_state_dict(state)
        results.append(function())
    return results


def make_replay(
    spec: TransitionSpec = SPEC,
    *,
    offline: int = 200,
    online: int = 200,
    generated_offline: int = 0,
    generated_online: int = 0,
    centers: tuple[float, float] = (0.0, 0.0),
    **options: Any,
) -> Replay:
    """Pools of random rows with returns; `centers` are those of the offline and the online rows."""
    sizes = dict(zip(Source, (offline, online, generated_offline, generated_online), strict=True))
    replay = Replay(spec, sizes, **options)
    for source, size in sizes.items():
        rows = raw_batch(size, spec, seed=int(source), center=centers[source.real])
        replay.pools[source].append(rows.where(returns=rows.rewards))
    return replay


class LinearPolicy:
    """A stochastic policy around tanh of the first observations."""

    def policy(self, observations: Tensor) -> Gaussian:
        return Gaussian(observations[:, :2].tanh(), torch.full((2,), -1.0))

    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        policy = self.policy(observations)
        if deterministic:
            return policy.mode.clamp(-1, 1)
        assert rng is not None, "exploring needs rng"
        return policy.sample(rng).clamp(-1, 1)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return observations.sum(1) - actions.square().sum(1)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.policy(observations).log_prob(actions)


def refresh(
    generator: Generator, replay: Replay, agent: Agent | None = None, num_updates: int | None = None
) -> list[Metrics]:
    """The metrics of all updates of a refresh, or of its first `num_updates`; no rows are sampled."""
    agent = NoAgent() if agent is None else agent
    total = generator.next_refresh(replay).updates
    generator.begin_refresh(replay, agent)
    return [generator.update(replay, agent) for _ in range(total if num_updates is None else num_updates)]


def play(environment: gym.Env, steps: int) -> Transitions:
    """Transitions of random actions."""
    observation, _ = environment.reset(seed=0)
    environment.action_space.seed(0)
    rows = []
    for _ in range(steps):
        action = environment.action_space.sample()
        following, reward, terminated, *_ = environment.step(action)
        rows.append(
            [torch.as_tensor(x, dtype=torch.float32) for x in (observation, action, reward, following, terminated)]
        )
        observation = environment.reset()[0] if terminated else following
    return Transitions.create(*(torch.stack(column) for column in zip(*rows, strict=True)))


def names(group: str) -> list[Path]:
    """The YAML files of a group, to parametrize over."""
    return sorted((CONFIGS / group).glob("*.yaml"))


def tiny(group: str, name: str | Path) -> list[str]:
    """Overrides that choose a component by name or file and make it small by the types and names of its settings."""
    path = Path(name) if str(name).endswith(".yaml") else CONFIGS / group / f"{name}.yaml"
    content = OmegaConf.load(path)
    target: Any = locate(str(content.target))
    own = {key: value for key, value in content.items() if key not in ("target", "run")}
    config = OmegaConf.merge(OmegaConf.structured(target.Config), own)
    return [f"{group}={path}", *_small(target.Config, config, f"{group}.")]


def _small(cls: type, values: Any, prefix: str) -> list[str]:
    hints, found = get_type_hints(cls), []
    for field in fields(cls):
        value = values[field.name]
        if is_dataclass(hints[field.name]):
            found += _small(hints[field.name], value, f"{prefix}{field.name}.")
        elif field.name == "base":  # a component inside this one, by the name of its file, and its settings
            group = prefix.partition(".")[0]
            found += [inner.replace(f"{group}.", f"{prefix}settings.", 1) for inner in tiny(group, value)[1:]]
        elif field.name.endswith("hidden") and value is not None:
            found.append(f"{prefix}{field.name}={HIDDEN}".replace(" ", ""))
        elif isinstance(value, int) and not isinstance(value, bool):
            largest = DEPTH if field.name == "depth" else LARGEST.get(field.name.rpartition("_")[2], value)
            found.append(f"{prefix}{field.name}={min(value, largest)}")
    return found


def build(group: str, name: str | Path, spec: TransitionSpec = SPEC, *, seed: int = 0, **settings: Any) -> Any:
    """The small component of a YAML file, with `settings` changed."""
    overrides = [*tiny(group, name), *(f"{group}.{key}={value}" for key, value in settings.items())]
    settings_of_run = compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides)
    return settings_of_run.components[group].build(spec, seed=seed)


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Tensors, numbers and strings of a nested state by their path."""
    if isinstance(state, (list, tuple)):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {path: state}
    return {where: leaf for key, value in state.items() for where, leaf in leaves(value, f"{path}/{key}").items()}
