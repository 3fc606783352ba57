"""What a generator alone is trained on: one dataset, or two whose rows carry different labels, checked and stored."""

import torch

from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.tables import check_columns
from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source

MIN_ROWS = 100
"""Fewer transitions are refused: a model of them would only repeat them (a default of ours)."""


def load_rows(name: str) -> Dataset:
    """The dataset `name`, with enough rows to train a generator on and no column that would be passed over.

    Raises InputError as `load_dataset` does, and for these two reasons.
    """
    check_columns(name)
    return check_rows(name, load_dataset(name))


def check_rows(name: str, dataset: Dataset) -> Dataset:
    """The same dataset, loaded from `name`; raises InputError when it has too few transitions."""
    if dataset.num_transitions < MIN_ROWS:
        raise InputError(f"{name} has {dataset.num_transitions} transitions, a generator needs at least {MIN_ROWS}")
    return dataset


def make_replay(offline: Dataset, online: Dataset | None = None, device: torch.device | str = "cpu") -> Replay:
    """A replay that holds both datasets, raw; raises InputError when their dimensions differ."""
    if online is not None and online.spec != offline.spec:
        raise InputError(
            f"online_dataset {online.name} has {online.spec}, the task's {offline.name} has {offline.spec}"
        )
    capacities = {Source.OFFLINE: offline.num_transitions, Source.ONLINE: online.num_transitions if online else 0}
    replay = Replay(offline.spec, capacities, device=device)
    replay.load(offline.episodes)
    for number, episode in enumerate(online.episodes if online else ()):
        replay.online.append(episode.transitions(), episode=number)
    return replay


def constant_columns(replay: Replay) -> list[str]:
    """Observations, actions and rewards that have one value in all real rows, as "observations[3] = 0.5"."""
    found, pools = [], [pool for pool in (replay.offline, replay.online) if len(pool)]
    for name in ("observations", "actions", "rewards"):
        low, high = torch.cat([pool.fields[name][: len(pool)].reshape(len(pool), -1) for pool in pools]).aminmax(dim=0)
        place = "{}" if name == "rewards" else "{}[{}]"
        found += [f"{place.format(name, k)} = {low[k]:.4g}" for k in torch.nonzero(low == high).flatten().tolist()]
    return found
