"""A generator as a plugin: user code passes in real transitions and samples generated ones.

It is independent of environments, trainers and loggers. The user's loop observes, refreshes periodically, and samples:

    augmenter = Augmenter.fit("mujoco/hopper/medium-v0")
    replay_buffer = augmenter.wrap(replay_buffer, ratio=0.5)  # observes add(), mixes sample()
    augmenter.maybe_refresh(step)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.arrays import Data, action_bounds, read_rows, to_transitions
from o2o_diffusion.integrations.buffers import AugmentedBuffer
from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.quality.pool import Report, report
from o2o_diffusion.quality.verdict import Verdict
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.settings import compose
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.types import Source, Transitions, TransitionSpec

ONLINE_CAPACITY = 1_000_000
PARTS = ("refresher", "replay", "rng")
"""Attributes with saved state; the refresher's state includes the generator."""


@dataclass(frozen=True)
class NoSettings:
    """Empty run settings, to compose a generator alone."""


class Detached:
    """Placeholder for an augmenter in a pickle; save augmenters with `state_dict` or `save_pretrained`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise InputError(
            "augmenters are not pickled: create a new one (from_pretrained, load_state_dict) and attach it"
        )


class Augmenter:
    """A generator with a replay of real rows and a pool of generated rows sampled in advance.

    Rewards are raw, observations are vectors. Actions passed in and returned are between `action_low` and `action_high`
    (default: the dataset's bounds, else -1 and 1); internally they are in [-1, 1].
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
        """Create an augmenter with an empty pool, without training its generator.

        Args:
            data: a Minari id, a folder, an .hdf5 or .npz file, or a dict of arrays (observations, actions, rewards,
                next_observations, terminations); `TransitionSpec(observation_dim, action_dim)` to start without rows.
            generator: name of a file in configs/generator, path of another .yaml, or a generator object.
            online: data with the online label.
            settings: overrides of the generator's settings, as in ["updates=2000", "num_samples=50000"].
            agent: the policy, for generators that use it; an object with act, values and log_prob.
            action_low, action_high: bounds of the user's actions, numbers or [action_dim].
            online_capacity: capacity of the pool of observed transitions, in rows.
            seed: random seed.
            device: device of the generator and the rows.

        Raises InputError (one line) if an argument is missing, unknown or incompatible.
        """
        rows = read_rows("dataset", data, action_low, action_high)
        online_rows = None if online is None else read_rows("online", online, action_low, action_high)
        if online_rows is not None and online_rows.spec != rows.spec:
            raise InputError(f"online has {online_rows.spec}, dataset has {rows.spec}")
        self.spec, self.bounds, self.unit = rows.spec, rows.bounds, action_bounds(rows.spec.action_dim)
        self.agent: Any = NoAgent() if agent is None else agent
        self.generator: Any = _build(generator, settings, self.spec, seed, device)
        self.refresher, self.provenance = Refresher(self.generator), dict(rows.provenance)
        empty = Replay(self.spec)
        capacities = self.generator.share(empty).counts(self.generator.next_refresh(empty).rows)
        capacities |= {Source.OFFLINE: len(rows), Source.ONLINE: max(online_capacity, len(online_rows or ()))}
        self.replay = Replay(self.spec, capacities, device=device)
        rows.store(self.replay, Source.OFFLINE)
        if online_rows is not None:
            online_rows.store(self.replay, Source.ONLINE)
        self.rng = ShardedRng(seed, "cpu", shared=False)
        self.step = 0

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
        """Create an augmenter, train its generator on `dataset` and fill its pool; arguments as in the constructor."""
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
        """Load a saved generator from a folder or Hub id and fill its pool, without training.

        With `dataset`, later refreshes train on its offline rows too. `options` are arguments of the constructor.
        """
        from o2o_diffusion.generators.pretrained import find_folder, load_generator, read_provenance

        generator = load_generator(folder, seed=seed, device=device)
        data = generator.spec if dataset is None else dataset
        augmenter = cls(data, generator=generator, seed=seed, device=device, **options)
        if augmenter.spec != generator.spec:
            raise InputError(f"{folder} was made for {generator.spec}, dataset has {augmenter.spec}")
        augmenter.provenance = read_provenance(find_folder(folder))
        augmenter.redraw()
        return augmenter

    @property
    def num_generated(self) -> int:
        """Number of generated rows in the pool."""
        return self.replay.num_generated

    @property
    def refreshes(self) -> int:
        """Number of refreshes so far, including refused ones."""
        return self.refresher.count

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
        """Add real transitions to the online pool: one row or a batch; NumPy, torch or lists.

        `terminations` are 1 if the task ended, 0 at a time limit. With `unit_actions`, actions are in [-1, 1]
        regardless of the bounds. Raises InputError if rows have the wrong width, are not finite, or are out of bounds.
        """
        fields = observations, actions, rewards, next_observations, terminations
        bounds = self.unit if unit_actions else self.bounds
        batch = to_transitions("observe", self.spec, bounds, *fields, source=Source.ONLINE)
        self.replay.online.append(batch[-self.replay.online.capacity :])

    def maybe_refresh(self, step: int) -> bool:
        """Refresh if due at environment step `step`; returns whether it did.

        The first refresh is due after the generator's `first_refresh` observed rows, later ones `refresh_interval`
        steps after the previous one. If `step` is before the previous refresh, as after a restart of training, the
        interval starts over.
        """
        self.step, self.refresher.last = step, min(self.refresher.last, step)
        if not len(self.replay.online) or not self.refresher.due(self.replay, step):
            return False
        self.refresh()
        self.refresher.last = step
        return True

    def refresh(self) -> Verdict:
        """Train the generator on all rows given and observed so far, then redraw the pool.

        Raises InputError if there are no rows.
        """
        if not self.replay.num_real:
            raise InputError("there are no rows to train the generator on: give a dataset, or observe some first")
        progress = functools.partial(tqdm, desc="train generator", leave=False, disable=None)  # silent in a log
        last = self.refresher.last
        verdict = self.refresher.refresh(self.replay, self.agent, self.step, progress=progress)
        self.refresher.last = last
        return self._checked(verdict)

    def redraw(self) -> Verdict:
        """Sample a new pool without training; the pool is empty if the gate refuses the rows."""
        return self._checked(self.refresher.redraw(self.replay, self.agent))

    def _checked(self, verdict: Verdict) -> Verdict:
        """Warn about refused and invalid rows."""
        if not verdict.accepted:
            warnings.warn(f"generated rows are {verdict}; batches hold real rows only", stacklevel=3)
        elif verdict.rows < verdict.asked_rows:
            lost = verdict.asked_rows - verdict.rows
            warnings.warn(f"{lost} of {verdict.asked_rows} generated rows were not valid; left out", stacklevel=3)
        return verdict

    def sample(self, num_samples: int, *, unit_actions: bool = False) -> Transitions:
        """Draw `num_samples` rows from the pool with replacement; does not run the generator.

        Raises InputError if the pool is empty.
        """
        if not self.num_generated:
            first = self.generator.next_refresh(self.replay).first
            raise InputError(
                f"there are no generated rows yet: call refresh(), or maybe_refresh(step) once "
                f"{first} rows are observed ({len(self.replay.online)} so far)"
            )
        num_offline = len(self.replay.pools[Source.GENERATED_OFFLINE])
        numbers = self.rng.integers(self.num_generated, num_samples)
        is_online = numbers >= num_offline
        pools = torch.where(is_online, int(Source.GENERATED_ONLINE), int(Source.GENERATED_OFFLINE))
        batch = self.replay.gather(Draw.create(numbers - num_offline * is_online, pools))
        return batch if unit_actions else batch.where(actions=self._to_box(batch.actions))

    def wrap(self, replay_buffer: Any, ratio: float | Callable[[int], float] = 0.5) -> AugmentedBuffer:
        """Wrap `replay_buffer`: observe its `add`, and mix a share `ratio` of generated rows into its batches.

        `ratio` may be a function of the step last passed to `maybe_refresh`. Rows already in the buffer are not
        observed. See `AugmentedBuffer` for the supported buffers.
        """
        return AugmentedBuffer(replay_buffer, self, ratio)

    def report(self, *, rows: int = 2_000) -> Report:
        """The gate's verdict on the pool and its numbers, with at most `rows` rows of each label and kind.

        `print(augmenter.report())` shows the verdict and its three worst reasons.
        """
        return report(self.replay, rows=rows, gate=self.generator.next_refresh(self.replay).gate)

    def state_dict(self) -> dict[str, Any]:
        """Full state except the offline rows: tensors, numbers, strings, lists, dicts."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return parts | {"step": self.step, "offline_rows": len(self.replay.offline)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`, saved by an augmenter with the same data and settings."""
        if state["offline_rows"] != len(self.replay.offline):
            raise InputError(
                f"the state is of an augmenter with {state['offline_rows']} offline rows, this one has "
                f"{len(self.replay.offline)}: make it with the same dataset"
            )
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the generator, without rows, to a folder for `from_pretrained`."""
        if not hasattr(self.generator, "save_pretrained"):
            raise InputError(f"{type(self.generator).__name__} has nothing to save")
        self.generator.save_pretrained(folder, self.provenance)

    def _to_box(self, actions: Tensor) -> Tensor:
        """Rescale actions from [-1, 1] to the user's bounds."""
        if self.bounds.is_unit:
            return actions
        low, high = (torch.from_numpy(side).to(actions.device) for side in (self.bounds.low, self.bounds.high))
        return low + (actions + 1) / 2 * (high - low)

    def __reduce__(self):
        return Detached, ()


def _build(generator: Any, settings: Sequence[str], spec: TransitionSpec, seed: int, device: torch.device | str) -> Any:
    """Build the generator named `generator` with `settings`; returns generator objects unchanged."""
    if not isinstance(generator, str):
        return generator
    overrides = [f"generator={generator}", *(f"generator.{setting}" for setting in settings)]
    component = compose(None, NoSettings, ("generator",), overrides).components["generator"]
    return component.build(spec, seed=seed, device=device)
