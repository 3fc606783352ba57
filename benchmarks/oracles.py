"""Oracles and controls: generators without a model, which say what generated rows could and should not give.

A cell in which the best oracle gains nothing says nothing about a generator. Chosen by file, from the checkout:

    PYTHONPATH=. python scripts/finetune.py --generator benchmarks/generator/relabel.yaml
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Interval

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality.dynamics import Simulator
from o2o_diffusion.replay import Pool, Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import REAL, EnvironmentSpec, Metrics, Source, Transitions, TransitionSpec

RESET_SEEDS = 2**31


class Rows(Stateful, ABC):
    """New rows at each refresh, with nothing to train and an open gate; subclasses make the rows."""

    @dataclass(frozen=True)
    class Config:
        """As far as they apply, the settings and defaults of the diffusion generators."""

        share: Annotated[float, "share of generated rows in a batch", Interval(ge=0, le=1)] = 0.5
        online: Annotated[float, "share of them with the online label", Interval(ge=0, le=1)] = 1.0
        num_samples: Annotated[int, "rows made per refresh", Ge(1)] = 10_000
        first_refresh: Annotated[int, "online rows before the first refresh", Ge(1)] = 1_000
        refresh_interval: Annotated[int, "environment steps between refreshes", Ge(0)] = 1_000

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec, self.device = config, spec, torch.device(device)
        self.rng = ShardedRng(seed, device, shared=False)  # the same rows on every process

    def share(self, replay: Replay) -> GeneratedShare:
        """A constant share."""
        return GeneratedShare(self.config.share, self.config.online)

    def next_refresh(self, replay: Replay) -> Refresh:
        """A refresh without updates."""
        c = self.config
        return Refresh(rows=c.num_samples, first=c.first_refresh, interval=c.refresh_interval)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Do nothing."""

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Do nothing."""
        return {}

    @abstractmethod
    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Make at most `num_samples` rows."""

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        """Return `batch` unchanged."""
        return batch

    def pool(self, replay: Replay, source: Source) -> Pool:
        """The real pool with the label of `source`, or the other one if it is empty."""
        other = next(real for real in REAL if real is not source.real)
        return replay.pools[source.real if len(replay.pools[source.real]) else other]

    def real(self, num_samples: int, replay: Replay, source: Source) -> Transitions:
        """Draw real rows with the label of `source`, with replacement."""
        pool = self.pool(replay, source)
        return pool[self.rng.integers(len(pool), num_samples)]

    def environment(self, source: Source) -> EnvironmentSpec:
        """The world of rows from `source`; raises InputError if it is unknown."""
        spec = self.spec.environment_of(source)
        if spec is None:
            raise InputError(f"generator {type(self).__name__} needs the environment of {source.label} rows")
        return spec

    def outcomes(self, batch: Transitions, world: Source, replay: Replay) -> Transitions:
        """`batch` with the true outcomes in the world of `world`, without rows of undetermined states.

        Raises InputError if observations are not full states there.
        """
        spec, seen = self.environment(world), replay.pools[world.real].all().to("cpu")
        try:
            simulator = Simulator(make_environment(spec))
        except ValueError as error:
            raise InputError(f"generator {type(self).__name__}: {error} ({spec.id})") from error
        if len(seen):
            simulator.find_limit(seen)
        batch = batch.to("cpu")
        return simulator(batch[simulator.known(batch)]).to(self.device)


class Rollout(Rows):
    """Extra real rows: episodes of the exploring policy in an environment of its own."""

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Collect exactly `num_samples` steps."""
        environment, observation, columns = make_environment(self.environment(source)), None, []
        for _ in range(num_samples):
            if observation is None:
                observation, _ = environment.reset(seed=int(self.rng.integers(RESET_SEEDS, 1)))
            action = agent.act(torch.from_numpy(observation)[None].to(self.device), rng=self.rng)[0].clamp(-1, 1).cpu()
            following, reward, terminated, truncated, _ = environment.step(action.numpy())
            columns.append((observation, action.numpy(), reward, following, terminated))
            observation = None if terminated or truncated else following
        arrays = (np.array(column, dtype=np.float32) for column in zip(*columns, strict=True))
        return Transitions.create(*(torch.from_numpy(array).to(self.device) for array in arrays), source=source)


class Relabel(Rows):
    """Real states, offline and online, with the policy's actions and their true outcomes in the label's world."""

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Simulate the policy's actions."""
        states = replay.gather(replay.union(self.rng.integers(replay.num_real, num_samples)))
        actions = agent.act(states.observations, rng=self.rng).clamp(-1, 1)
        return labeled(self.outcomes(states.where(actions=actions), source, replay), source)


class RelabelOffline(Rows):
    """Offline states and actions, with their true outcomes in the world of the policy."""

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Simulate offline rows in the online world, whatever their new label."""
        rows = self.real(num_samples, replay, Source.OFFLINE)
        return labeled(self.outcomes(rows, Source.ONLINE, replay), source)


class Resample(Rows):
    """Control: real rows of the label again."""

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Draw rows with replacement."""
        return labeled(self.real(num_samples, replay, source), source)


class Copier(Rows):
    """Control: real rows of the label with a little noise, which two-sample tests hardly notice."""

    @dataclass(frozen=True)
    class Config(Rows.Config):
        """The noise of the issue's control."""

        noise: Annotated[float, "standard deviation of the noise, in standard deviations of each column", Ge(0)] = 0.03

    config: Config

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Add noise to every column but the termination; actions stay in [-1, 1]."""
        rows = self.spec.flatten(self.real(num_samples, replay, source))
        scale = self.config.noise * self.spec.flatten(self.pool(replay, source).all()).std(0)
        scale[self.spec.columns["terminations"]] = 0.0
        noisy = self.spec.unflatten(rows + scale * self.rng.normal(*rows.shape), source)
        return noisy.where(actions=noisy.actions.clamp(-1, 1))


class Nonsense(Rows):
    """Control: every field from another real row of the label, so that nothing follows from anything."""

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """Draw each field from its own rows."""
        fields = {name: getattr(self.real(num_samples, replay, source), name) for name in self.spec.columns}
        return Transitions.create(**fields, source=source)


def labeled(batch: Transitions, source: Source) -> Transitions:
    """The raw transitions of `batch` as new rows from `source`."""
    names = ("observations", "actions", "rewards", "next_observations", "terminations")
    return Transitions.create(**{name: getattr(batch, name) for name in names}, source=source)
