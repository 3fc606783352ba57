"""Load and check the data for training a generator alone: one dataset, or two with different labels."""

import torch

from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.tables import check_columns
from o2o_diffusion.errors import InputError
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source

MIN_ROWS = 100
"""Minimum number of transitions; a model of fewer would only memorize them."""


def load_rows(name: str) -> Dataset:
    """Load the dataset `name` for training a generator.

    Raises InputError like `load_dataset`, and if there are too few rows or unknown columns.
    """
    check_columns(name)
    return check_rows(name, load_dataset(name))


def check_rows(name: str, dataset: Dataset) -> Dataset:
    """Return `dataset`, loaded from `name`; raises InputError if it has too few transitions."""
    if dataset.num_transitions < MIN_ROWS:
        raise InputError(f"{name} has {dataset.num_transitions} transitions, a generator needs at least {MIN_ROWS}")
    return dataset


def make_replay(offline: Dataset, online: Dataset | None = None, device: torch.device | str = "cpu") -> Replay:
    """Create a replay with both datasets, rewards raw; raises InputError if their dimensions differ."""
    if online is not None and online.spec != offline.spec:
        raise InputError(
            f"online_dataset {online.name} has {online.spec}, the task's {offline.name} has {offline.spec}"
        )
    capacities = {Source.OFFLINE: offline.num_transitions, Source.ONLINE: online.num_transitions if online else 0}
    replay = Replay(offline.spec, capacities, device=device)
    replay.load(offline.episodes)
    replay.load(online.episodes if online else (), Source.ONLINE)
    return replay


def constant_columns(replay: Replay) -> list[str]:
    """Columns of observations, actions and rewards constant over all real rows, e.g. "observations[3] = 0.5"."""
    found, batches = [], [pool.all() for pool in (replay.offline, replay.online) if len(pool)]
    for name in ("observations", "actions", "rewards"):
        low, high = torch.cat([getattr(batch, name).reshape(len(batch), -1) for batch in batches]).aminmax(dim=0)
        place = "{}" if name == "rewards" else "{}[{}]"
        found += [f"{place.format(name, k)} = {low[k]:.4g}" for k in torch.nonzero(low == high).flatten().tolist()]
    return found
