"""A generator as a plugin: other people's code gives it real transitions and draws generated ones.

Nothing here knows an environment, a trainer or a logger. The user's loop observes, refreshes now and then, and samples:

    augmenter = Augmenter.fit("mujoco/hopper/medium-v0")
    replay_buffer = augmenter.wrap(replay_buffer, ratio=0.5)  # add() is observed, sample() is mixed
    augmenter.maybe_refresh(step)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.distributed import Noise
from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.arrays import Data, action_bounds, read_rows, to_transitions
from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import compose
from o2o_diffusion.types import Source, Transitions, TransitionSpec

if TYPE_CHECKING:
    from o2o_diffusion.integrations.buffers import AugmentedBuffer

GENERATED = (Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE)
ONLINE_CAPACITY = 1_000_000


@dataclass(frozen=True)
class NoSettings:
    """A generator on its own has no run around it."""


class Detached:
    """What is left of an augmenter in a pickle: it is saved by `state_dict` or `save_pretrained`, not by others."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError("augmenters are not pickled: make one anew (from_pretrained, load_state_dict) and attach it")


class Augmenter:
    """A generator with its replay of real rows and a pool of generated ones, drawn ahead of time.

    Rewards are raw, observations vectors. Actions are in [-1, 1] inside; whoever calls sees them between `action_low`
    and `action_high` (default: the dataset's own bounds, else -1 and 1), on the way in and out.
    """

    def __init__(
        self,
        data: Data,
        *,
        generator: str | Generator = "cfdg",
        online: Data | None = None,
        settings: Sequence[str] = (),
        agent: Agent | None = None,
        action_low: Any = None,
        action_high: Any = None,
        online_capacity: int = ONLINE_CAPACITY,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        """An augmenter that has trained nothing and holds no generated rows.

        Args:
            data: a Minari id, a folder, an .hdf5 or .npz file, or a dict of arrays (observations, actions, rewards,
                next_observations, terminations); `TransitionSpec(observation_dim, action_dim)` to begin with no rows.
            generator: name of a file in configs/generator, path of another .yaml, or a generator that is built.
            online: data whose rows carry the online label.
            settings: overrides of the generator's, as in ["updates=2000", "num_samples=50000"].
            agent: the policy, for generators that ask it; an object with act, values and log_prob.
            action_low, action_high: bounds of the user's actions, numbers or [action_dim].
            online_capacity: rows of the ring of observed transitions (a default of ours).
            seed: decides everything random.
            device: where the generator and the rows lie.

        Raises InputError, one line, for whatever is missing, unknown or does not fit.
        """
        rows = read_rows("dataset", data, action_low, action_high)
        online_rows = None if online is None else read_rows("online", online, action_low, action_high)
        if online_rows is not None and online_rows.spec != rows.spec:
            raise InputError(f"online has {online_rows.spec}, dataset has {rows.spec}")
        self.spec, self.bounds, self.unit = rows.spec, rows.bounds, action_bounds(rows.spec.action_dim)
        self.agent: Any = NoAgent() if agent is None else agent
        self.generator: Any = _build(generator, settings, self.spec, seed, device)
        capacities = self._counts() | {Source.OFFLINE: len(rows)}
        capacities[Source.ONLINE] = max(online_capacity, len(online_rows or ()))
        self.replay = Replay(self.spec, capacities, device=device)
        rows.store(self.replay, self.replay.offline)
        if online_rows is not None:
            online_rows.store(self.replay, self.replay.online)
        self.noise = Noise(seed, "cpu")
        self.step = self.refreshes = 0
        self.last_refresh = -1

    @classmethod
    def fit(
        cls,
        dataset: Data,
        *,
        generator: str | Generator = "cfdg",
        online: Data | None = None,
        settings: Sequence[str] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Augmenter:
        """An augmenter whose generator is trained on `dataset`, with its pool drawn; arguments of the constructor."""
        augmenter = cls(
            dataset, generator=generator, online=online, settings=settings, seed=seed, device=device, **options
        )
        augmenter.refresh()
        return augmenter

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dataset: Data | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Augmenter:
        """The generator saved in `folder` (or under that id on the hub), with its pool drawn and nothing trained.

        Give `dataset` where later refreshes are to remember the offline rows. `options` are the constructor's.
        """
        from o2o_diffusion.generators.pretrained import load_generator

        generator = load_generator(folder, seed=seed, device=device)
        data = generator.spec if dataset is None else dataset
        augmenter = cls(data, generator=generator, seed=seed, device=device, **options)
        if augmenter.spec != generator.spec:
            raise InputError(f"{folder} was made for {generator.spec}, dataset has {augmenter.spec}")
        augmenter.redraw()
        return augmenter

    @property
    def num_generated(self) -> int:
        """Generated rows in the pool."""
        return sum(len(self.replay.pools[source]) for source in GENERATED)

    def observe(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminations: Any,
        *,
        unit_actions: bool = False,
    ) -> None:
        """Store real transitions in the online ring: one row, or a batch; NumPy, torch or lists.

        `terminations` are 1 where the task ended, 0 at a time limit. With `unit_actions`, actions are in [-1, 1]
        whatever the bounds. Raises InputError for rows of other widths, not finite, or out of bounds.
        """
        fields = observations, actions, rewards, next_observations, terminations
        bounds = self.unit if unit_actions else self.bounds
        batch = to_transitions("observe", self.spec, bounds, *fields, source=Source.ONLINE)
        self.replay.online.append(batch[-self.replay.online.capacity :])

    def maybe_refresh(self, step: int) -> bool:
        """Refresh when it is due at environment step `step`; True if it was.

        The first is due after the generator's `first_refresh` observed rows, the next ones `refresh_interval` steps
        after the last. A `step` behind the last one, as when training starts again, begins a new count.
        """
        self.step, self.last_refresh = step, min(self.last_refresh, step)
        waited = step - self.last_refresh if self.last_refresh >= 0 else self.generator.refresh_interval
        enough = len(self.replay.online) >= max(1, self.generator.first_refresh)
        if self.generator.num_samples == 0 or not enough or waited < self.generator.refresh_interval:
            return False
        self.last_refresh = step
        self.refresh()
        return True

    @torch.enable_grad()
    def refresh(self) -> None:
        """Train the generator on what was given and observed so far, all its updates at once, and redraw the pool."""
        if not len(self.replay.offline) + len(self.replay.online):
            raise InputError("there are no rows to train the generator on: give a dataset, or observe some first")
        self.generator.begin_refresh(self.replay, self.agent)
        for _ in tqdm(range(self.generator.num_updates), desc="train generator", leave=False, disable=None):
            self.generator.update(self.replay, self.agent)
        self.refreshes += 1
        self.redraw()

    def redraw(self) -> None:
        """Replace the pool by new rows of the generator as it is; the only place where its solver runs."""
        counts = self._counts()
        batches = {
            source: self.generator.sample(count, source=source, replay=self.replay, agent=self.agent)
            for source, count in counts.items()
        }
        self.replay.replace_generated(batches)
        missing = sum(counts.values()) - self.num_generated
        if missing:
            warnings.warn(f"{missing} of {sum(counts.values())} generated rows were not valid; left out", stacklevel=3)

    def sample(self, num_samples: int, *, unit_actions: bool = False) -> Transitions:
        """`num_samples` rows of the pool, drawn with replacement; the generator does not run.

        Raises InputError while there are none.
        """
        if not self.num_generated:
            raise InputError(
                f"there are no generated rows yet: call refresh(), or maybe_refresh(step) once "
                f"{self.generator.first_refresh} rows are observed ({len(self.replay.online)} so far)"
            )
        first = len(self.replay.pools[GENERATED[0]])
        drawn = (self.noise.uniform(num_samples).double() * self.num_generated).long()
        pools = torch.where(drawn < first, int(GENERATED[0]), int(GENERATED[1]))
        rows = torch.where(drawn < first, drawn, drawn - first)
        device = self.replay.memory["rewards"].device
        batch = self.replay.gather(rows.to(device), pools.to(device))
        return batch if unit_actions else batch.where(actions=self._to_box(batch.actions))

    def wrap(self, replay_buffer: Any, ratio: float | Callable[[int], float] = 0.5) -> AugmentedBuffer:
        """`replay_buffer` with a share `ratio` of generated rows in its batches, and its `add` observed.

        `ratio` may be a function of the step last given to `maybe_refresh`. Rows that the buffer already holds are not
        observed. See `AugmentedBuffer` for which buffers fit.
        """
        from o2o_diffusion.integrations.buffers import AugmentedBuffer

        return AugmentedBuffer(replay_buffer, self, ratio)

    def report(self, *, rows: int = 2_000) -> dict[str, Any]:
        """How good the pool is, against at most `rows` real rows of each label; see `integrations.fidelity.report`.

        Warns when a classifier tells generated from real rows with an AUC above the generator's `max_auc`.
        """
        from o2o_diffusion.quality.pool import report

        return report(self.replay, rows=rows, max_auc=self.generator.max_auc)

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs but the offline rows; tensors, numbers, strings, lists, dicts."""
        parts = {name: getattr(self, name).state_dict() for name in ("generator", "replay", "noise")}
        counters = {name: getattr(self, name) for name in ("step", "refreshes", "last_refresh")}
        return parts | counters | {"offline_rows": len(self.replay.offline)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, in an augmenter that was made with the same data and settings."""
        if state["offline_rows"] != len(self.replay.offline):
            raise InputError(
                f"the state is of an augmenter with {state['offline_rows']} offline rows, this one has "
                f"{len(self.replay.offline)}: make it with the same dataset"
            )
        for name in ("generator", "replay", "noise"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("step", "refreshes", "last_refresh"):
            setattr(self, name, state[name])

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the generator, not the rows, as a folder that `from_pretrained` reads."""
        if not hasattr(self.generator, "save_pretrained"):
            raise InputError(f"{type(self.generator).__name__} has nothing to save")
        self.generator.save_pretrained(folder)

    def _counts(self) -> dict[Source, int]:
        """Rows to draw per label."""
        return self.generator.generated.counts(self.generator.num_samples)

    def _to_box(self, actions: Tensor) -> Tensor:
        """Actions in [-1, 1], in the user's bounds."""
        if self.bounds.is_unit:
            return actions
        low, high = (torch.from_numpy(side).to(actions.device) for side in (self.bounds.low, self.bounds.high))
        return low + (actions + 1) / 2 * (high - low)

    def __reduce__(self):
        return Detached, ()


def _build(generator: Any, settings: Sequence[str], spec: TransitionSpec, seed: int, device: torch.device | str) -> Any:
    """The generator named `generator` with `settings`, or itself when it is one."""
    if not isinstance(generator, str):
        return generator
    overrides = [f"generator={generator}", *(f"generator.{setting}" for setting in settings)]
    component = compose(None, NoSettings, ("generator",), overrides).components["generator"]
    return component.build(spec, seed=seed, device=device)
