"""The store every component reads: offline, online and generated rows side by side in one block of memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from o2o_diffusion.types import Episode, RewardTransform, Source, Transitions, TransitionSpec

RAW = RewardTransform()
STORED = ("observations", "actions", "rewards", "next_observations", "terminations", "returns")


class Pool:
    """The rows of one source: a slice of the replay's memory, a ring of which only the online one ever comes round.

    `episodes` and `steps` ([capacity] int64, -1 where unused) tell which step of which episode a row is, so that
    windows never cross an episode.
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
        """Transitions of `rows` ([B] int64, below `len`), with their rows and source set."""
        return Transitions.create(
            **{name: field[rows] for name, field in self.fields.items()}, rows=rows, source=self.source
        )

    def all(self) -> Transitions:
        """Every row of the pool."""
        return self[torch.arange(self.size, device=self.steps.device)]

    def append(self, batch: Transitions, *, episode: int = -1, first_step: int = 0) -> Tensor:
        """Store `batch`, over the oldest rows when the ring is full; returns the rows written ([B] int64)."""
        if len(batch) > self.capacity:
            raise ValueError(f"{len(batch)} rows do not fit into the {self.source.name} pool of {self.capacity}")
        device = self.steps.device
        rows = (self.position + torch.arange(len(batch), device=device)) % self.capacity
        for name, field in self.fields.items():
            field[rows] = getattr(batch, name).to(device)
        self.episodes[rows] = episode
        self.steps[rows] = torch.arange(first_step, first_step + len(batch), device=device)
        self.position = (self.position + len(batch)) % max(self.capacity, 1)
        self.size = min(self.size + len(batch), self.capacity)
        return rows

    def clear(self) -> None:
        """Forget every row."""
        self.size = self.position = 0

    def state_dict(self) -> dict:
        """The rows in use and where the ring stands."""
        held = {name: field[: self.size].clone() for name, field in self.fields.items()}
        held |= {"episodes": self.episodes[: self.size].clone(), "steps": self.steps[: self.size].clone()}
        return {"rows": held, "size": self.size, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`; raises ValueError when it does not fit."""
        if state["size"] > self.capacity:
            raise ValueError(f"{state['size']} saved {self.source.name} rows do not fit into a pool of {self.capacity}")
        self.size, self.position = state["size"], state["position"]
        for name, rows in state["rows"].items():
            field = self.fields[name] if name in self.fields else getattr(self, name)
            field[: self.size] = rows.to(field.device)


class Replay:
    """Offline, online and generated pools; all of them raw, drawn from by `gather`.

    Offline rows are written once and never again; the online pool is a ring whose capacity is really reached;
    generated rows are replaced at each refresh and are never mistaken for observations of the environment.
    `capacities` are rows per source. `transform`, `discount` and `failure_reward` serve `Episode.returns`.
    """

    def __init__(
        self,
        spec: TransitionSpec,
        capacities: Mapping[Source, int],
        *,
        transform: RewardTransform = RAW,
        discount: float = 0.99,
        failure_reward: float | None = None,
        device: torch.device | str = "cpu",
    ):
        self.spec, self.transform, self.discount, self.failure_reward = spec, transform, discount, failure_reward
        total = sum(capacities.get(source, 0) for source in Source)
        widths = {"observations": spec.observation_dim, "actions": spec.action_dim}
        widths["next_observations"] = spec.observation_dim
        shapes = {name: (total, widths[name]) if name in widths else (total,) for name in STORED}
        self.memory = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self.memory |= {name: torch.full((total,), -1, device=device) for name in ("episodes", "steps")}
        self.memory["sources"] = torch.empty(total, dtype=torch.int64, device=device)
        self.pools: dict[Source, Pool] = {}
        start = 0
        for source in Source:
            capacity = capacities.get(source, 0)
            self.pools[source] = Pool(self.memory, source, start, capacity)
            self.memory["sources"][start : start + capacity] = int(source)
            start += capacity

    @property
    def offline(self) -> Pool:
        """Rows of the dataset."""
        return self.pools[Source.OFFLINE]

    @property
    def online(self) -> Pool:
        """Rows of the environment."""
        return self.pools[Source.ONLINE]

    def load(self, episodes: Sequence[Episode]) -> None:
        """Fill the offline pool with a dataset's episodes and their returns."""
        for number, episode in enumerate(episodes):
            returns = torch.from_numpy(episode.returns(self.transform, self.discount, self.failure_reward))
            self.offline.append(episode.transitions(returns=returns), episode=number)

    def end_episode(self, episode: Episode, rows: Tensor) -> None:
        """Fill in the returns of a finished online episode whose transitions lie in `rows`."""
        returns = torch.from_numpy(episode.returns(self.transform, self.discount, self.failure_reward))
        kept = rows[-self.online.capacity :]  # an episode longer than the ring has overwritten its own beginning
        self.online.fields["returns"][kept] = returns[-len(kept) :].to(self.online.steps.device)

    def replace_generated(self, batches: Mapping[Source, Transitions]) -> None:
        """Forget all generated rows and store new ones."""
        for source in (Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE):
            self.pools[source].clear()
        for source, batch in batches.items():
            self.pools[source].append(batch)

    def gather(self, rows: Tensor, pools: Tensor) -> Transitions:
        """Transitions of `rows` ([B], index in the pool) of `pools` ([B], a `Source` each), in one read per field."""
        starts = torch.tensor([self.pools[source].start for source in Source], device=rows.device)
        where = rows + starts[pools]
        fields: dict[str, Any] = {name: self.memory[name].index_select(0, where) for name in (*STORED, "sources")}
        return Transitions.create(**fields, rows=rows)

    def state_dict(self) -> dict:
        """Everything but the offline rows, which the dataset holds."""
        pools = {source.name: pool.state_dict() for source, pool in self.pools.items() if source is not Source.OFFLINE}
        return {"pools": pools}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`."""
        for name, pool in state["pools"].items():
            self.pools[Source[name]].load_state_dict(pool)
