"""The replay shared by all components: offline, online and generated rows in one block of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from o2o_diffusion.types import GENERATED, REAL, Episode, RewardTransform, Source, Transitions, TransitionSpec

RAW = RewardTransform()
STORED = ("observations", "actions", "rewards", "next_observations", "terminations", "returns", "next_actions")
PIECE, EVERY = 100, 10
"""Of the pieces of at most 100 steps that episodes consist of, one in ten is held out."""


class Pool:
    """The rows of one source: a slice of the replay's memory, used as a ring buffer.

    `episodes` and `steps` ([capacity] int64, -1 if unused) are the episode and the step of each row.
    """

    def __init__(self, memory: Mapping[str, Tensor], source: Source, start: int, capacity: int):
        where = slice(start, start + capacity)
        self.source, self.start, self.capacity = source, start, capacity
        self.fields = {name: memory[name][where] for name in STORED}
        self.episodes, self.steps = memory["episodes"][where], memory["steps"][where]
        self.size = self.position = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, rows: Tensor) -> Transitions:
        """Copy `rows` ([B] int64, below `len`), with their row indices and source."""
        columns = {name: field[rows] for name, field in self.fields.items()}
        return Transitions.create(**columns, rows=rows, source=self.source)

    def all(self) -> Transitions:
        """Every row in storage order, without copying the stored fields."""
        return Transitions.create(**{name: f[: self.size] for name, f in self.fields.items()}, source=self.source)

    @property
    def held_out(self) -> Tensor:
        """[len] bool: the rows to judge generated rows by, which generators are not trained on.

        Depends only on a row's episode and step, so that a row stays held out, and long episodes are held out in part,
        so that a run's first ones are. Rows without an episode count as one episode in storage order.
        """
        numbers = torch.arange(self.size, device=self.steps.device)
        episodes, steps = self.episodes[: self.size], self.steps[: self.size]
        pieces = episodes.clamp(min=0) + torch.where(episodes < 0, numbers, steps) // PIECE
        return pieces % EVERY == EVERY // 2

    def append(self, batch: Transitions, *, episode: int = -1, first_step: int = 0) -> Tensor:
        """Store `batch`, overwriting the oldest rows if the ring is full; returns the rows written ([B] int64).

        Raises ValueError if the batch is larger than the pool.
        """
        if len(batch) > self.capacity:
            raise ValueError(f"{len(batch)} rows do not fit into the {self.source.name} pool of {self.capacity}")
        device = self.steps.device
        rows = (self.position + torch.arange(len(batch), device=device)) % max(self.capacity, 1)
        for name, field in self.fields.items():
            field[rows] = getattr(batch, name).to(device)
        self.episodes[rows] = episode
        self.steps[rows] = torch.arange(first_step, first_step + len(batch), device=device)
        self.position = (self.position + len(batch)) % max(self.capacity, 1)
        self.size = min(self.size + len(batch), self.capacity)
        return rows

    def clear(self) -> None:
        """Drop every row."""
        self.size = self.position = 0

    def state_dict(self) -> dict:
        """The stored rows and the write position."""
        rows = {name: field[: self.size].clone() for name, field in self._stored().items()}
        return {"rows": rows, "size": self.size, "position": self.position}

    def part(self, mask: Tensor) -> dict:
        """The state of a full pool with only the rows where `mask` ([len] bool) is true."""
        rows = {name: field[: self.size][mask] for name, field in self._stored().items()}
        return {"rows": rows, "size": int(mask.sum()), "position": 0}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state`; raises ValueError if it does not fit."""
        if state["size"] > self.capacity:
            raise ValueError(f"{state['size']} saved {self.source.name} rows do not fit into a pool of {self.capacity}")
        self.size, self.position = state["size"], state["position"]
        if self.position < self.size < self.capacity:  # the ring was full, and has grown since
            if self.position:
                raise ValueError(f"the {self.source.name} pool of {self.size} rows is full and can't become larger")
            self.position = self.size
        for name, rows in state["rows"].items():
            field = self.fields[name] if name in self.fields else getattr(self, name)
            field[: self.size] = rows.to(field.device)

    def _stored(self) -> dict[str, Tensor]:
        return self.fields | {"episodes": self.episodes, "steps": self.steps}


@dataclass(frozen=True)
class Draw:
    """Indices of the rows of a batch: each field is [B], on any device.

    `rows` index into `pools` (a `Source` each); `sources` are the sources of the final rows, different from `pools`
    only if a generator replaces real rows at batch time. `weights` and `regularization`: see `Transitions`.
    """

    rows: Tensor
    pools: Tensor
    sources: Tensor
    weights: Tensor
    regularization: Tensor

    @classmethod
    def create(cls, rows: Tensor, pools: Tensor, **changes: Tensor) -> Draw:
        """Create a draw; by default, weights and regularization are 1 and no row is replaced."""
        ones = torch.ones(len(rows), device=rows.device)
        return cls(rows, pools, **({"sources": pools, "weights": ones, "regularization": ones} | changes))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Draw:
        return Draw(*(getattr(self, field.name)[rows] for field in fields(self)))


class Replay:
    """Offline, online and generated pools with raw rewards; `gather` reads them and `scaled` prepares a batch.

    Offline rows are written once; the online pool is a ring; generated rows are replaced at each refresh. `capacities`
    is in rows per source. `transform`, `discount` and `failure_reward` define the returns and the learner's rewards.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        capacities: Mapping[Source, int] | None = None,
        *,
        transform: RewardTransform = RAW,
        discount: float = 0.99,
        failure_reward: float | None = None,
        device: torch.device | str = "cpu",
    ):
        self.spec, self.transform, self.discount, self.failure_reward = spec, transform, discount, failure_reward
        sizes = [(capacities or {}).get(source, 0) for source in Source]
        widths = {"observations": spec.observation_dim, "actions": spec.action_dim}
        widths |= {"next_observations": spec.observation_dim, "next_actions": spec.action_dim}
        shapes = {name: (sum(sizes), widths[name]) if name in widths else (sum(sizes),) for name in STORED}
        self.memory = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self.memory |= {name: torch.full((sum(sizes),), -1, device=device) for name in ("episodes", "steps")}
        starts = [sum(sizes[: int(source)]) for source in Source]
        self.starts = torch.tensor(starts, device=device)
        self.pools = {source: Pool(self.memory, source, starts[source], sizes[source]) for source in Source}

    @property
    def device(self) -> torch.device:
        """Device of the stored rows."""
        return self.starts.device

    @property
    def offline(self) -> Pool:
        """Rows of the dataset."""
        return self.pools[Source.OFFLINE]

    @property
    def online(self) -> Pool:
        """Rows collected in the environment."""
        return self.pools[Source.ONLINE]

    @property
    def num_real(self) -> int:
        """Number of offline and online rows."""
        return len(self.offline) + len(self.online)

    @property
    def num_generated(self) -> int:
        """Number of generated rows of both labels."""
        return sum(len(self.pools[source]) for source in GENERATED)

    def load(self, episodes: Sequence[Episode], source: Source = Source.OFFLINE) -> None:
        """Store the episodes of a dataset, with their returns, in the pool of `source`."""
        for number, episode in enumerate(episodes):
            self.pools[source].append(episode.transitions(returns=self.returns(episode)), episode=number)

    def returns(self, episode: Episode) -> Tensor:
        """[T] discounted returns-to-go of the episode's transformed rewards."""
        return torch.from_numpy(episode.returns(self.transform, self.discount, self.failure_reward))

    def end_episode(self, episode: Episode, rows: Tensor) -> None:
        """Store the returns and next actions of a finished online episode with transitions at `rows`."""
        kept = rows[-self.online.capacity :]  # an episode longer than the ring overwrites its own beginning
        for name, values in (("returns", self.returns(episode)), ("next_actions", episode.next_actions())):
            self.online.fields[name][kept] = values[-len(kept) :].to(self.device)

    def replace_generated(self, batches: Mapping[Source, Transitions]) -> None:
        """Replace all generated rows with `batches`."""
        for source in GENERATED:
            self.pools[source].clear()
        for source, batch in batches.items():
            self.pools[source].append(batch)

    def part(self, *, held_out: bool) -> Replay:
        """Copy the real rows that are held out, or all others, with their returns, episodes and steps."""
        masks = {source: self.pools[source].held_out == held_out for source in REAL}
        options: dict[str, Any] = {"transform": self.transform, "discount": self.discount, "device": self.device}
        sizes = {source: int(mask.sum()) for source, mask in masks.items()}
        part = Replay(self.spec, sizes, failure_reward=self.failure_reward, **options)
        for source, mask in masks.items():
            part.pools[source].load_state_dict(self.pools[source].part(mask))
        return part

    def union(self, numbers: Tensor) -> Draw:
        """Select real rows by `numbers` ([B] int64), indices into the offline rows followed by the online rows."""
        is_online = numbers >= len(self.offline)
        pools = torch.where(is_online, int(Source.ONLINE), int(Source.OFFLINE))
        return Draw.create(numbers - len(self.offline) * is_online, pools)

    def gather(self, draw: Draw, length: int = 1) -> Transitions:
        """Read the transitions of `draw`, [B, ...]; with `length` > 1, the windows starting there, [B, length, ...].

        Past the end of its episode, a window repeats the last row with weight 0.
        """
        rows, pools = draw.rows.to(self.device), draw.pools.to(self.device)
        factors = {name: getattr(draw, name).to(self.device) for name in ("sources", "weights", "regularization")}
        if length > 1:
            rows, inside = self._windows(rows, pools, length)
            pools = pools[:, None]
            factors = {name: factor[:, None].expand(rows.shape) for name, factor in factors.items()}
            factors["weights"] = factors["weights"] * inside
        where = rows + self.starts[pools]
        columns: dict[str, Any] = {name: self.memory[name].index_select(0, where.flatten()) for name in STORED}
        columns = {name: column.unflatten(0, where.shape) for name, column in columns.items()}
        return Transitions.create(**columns, **factors, rows=rows)

    def scaled(self, batch: Transitions) -> Transitions:
        """Transform the rewards and set the discounts of a raw `batch` for learners; the only place that does so."""
        return batch.where(rewards=self.transform(batch.rewards), discounts=self.discount * (1.0 - batch.terminations))

    def _windows(self, rows: Tensor, pools: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """[B, length] rows of the windows starting at `rows`, and a mask of the rows in the same episode."""
        pool_list = [self.pools[source] for source in Source]
        capacities, sizes = (
            torch.tensor(values, device=self.device)[pools][:, None]
            for values in ([max(pool.capacity, 1) for pool in pool_list], [len(pool) for pool in pool_list])
        )
        offsets, starts = torch.arange(length, device=self.device), self.starts[pools][:, None]
        candidates = (rows[:, None] + offsets) % capacities
        steps, episodes = (self.memory[name][starts + candidates] for name in ("steps", "episodes"))
        inside = (candidates < sizes) & (episodes == episodes[:, :1]) & (steps == steps[:, :1] + offsets)
        inside &= (episodes[:, :1] >= 0) | (offsets == 0)  # a row without an episode is its own window
        inside = inside.cummin(1).values
        return candidates.gather(1, (inside.sum(1, keepdim=True) - 1).minimum(offsets)), inside

    def state_dict(self) -> dict:
        """The state of every pool except offline, which is reloaded from the dataset."""
        pools = {source.name: pool.state_dict() for source, pool in self.pools.items() if source is not Source.OFFLINE}
        return {"pools": pools}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state`."""
        for name, pool in state["pools"].items():
            self.pools[Source[name]].load_state_dict(pool)
