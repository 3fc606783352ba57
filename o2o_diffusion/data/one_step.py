"""Write generated rows as a Minari dataset of one-step episodes, in the spaces of the matching real dataset."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from o2o_diffusion.data import local
from o2o_diffusion.data.datasets import Dataset
from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.data.tables import FILES
from o2o_diffusion.data.writing import new_dataset, write_dataset
from o2o_diffusion.errors import InputError
from o2o_diffusion.progress import progress_bar
from o2o_diffusion.types import Transitions, TransitionSpec

if TYPE_CHECKING:
    import gymnasium as gym
    from minari import MinariDataset
    from minari.data_collector import EpisodeBuffer

BYTES_PER_EPISODE, BYTES_PER_FIELD, SECONDS_PER_EPISODE = 11_700, 3_400, 6e-4
"""Measured for one-step episodes in Minari's HDF5 format; a field is one array of the observations."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Row layout of a new dataset: its spaces and environment, and the mapping from flat rows to observations.

    `recorded` has the observation space, action space and specification. `keys` are the fields of dict observations in
    the order of a flat row; `repeats` maps each omitted field to its first column in `observation`.
    """

    recorded: gym.Env
    bounds: ActionBounds
    keys: tuple[str, ...] = ()
    repeats: Mapping[str, int] | None = None

    @classmethod
    def of(cls, dataset: Dataset, source: MinariDataset) -> Layout:
        """Layout of a Minari dataset loaded as `dataset`; raises InputError if its observations are nested."""
        if any("." in key for key in dataset.observation_keys):
            raise InputError(
                f"{dataset.name}: rows of nested observations {list(dataset.observation_keys)} can't be written as a"
                " Minari dataset; write .npz, .hdf5 or .safetensors"
            )
        recorded = _recorded(source.observation_space, source.action_space, source.spec.env_spec)
        repeats = {}
        if dataset.observation_keys and "achieved_goal" not in dataset.observation_keys:
            fields: Any = source[0].observations
            if "achieved_goal" in fields:
                repeats["achieved_goal"] = _column(fields["achieved_goal"], fields["observation"])
        return cls(recorded, ActionBounds.of(source.action_space, dataset.name), dataset.observation_keys, repeats)

    @classmethod
    def flat(cls, spec: TransitionSpec, provenance: Mapping[str, Any], environment: gym.Env | None = None) -> Layout:
        """Flat layout for a saved generator, by its `provenance`; with the spaces of `environment` if flat."""
        from gymnasium.spaces import Box

        if environment is not None and environment.observation_space.shape == (spec.observation_dim,):
            return cls(environment, ActionBounds.of(environment.action_space, "the generator's environment"))
        low = np.array(provenance.get("action_low") or [-1.0] * spec.action_dim, np.float32)
        high = np.array(provenance.get("action_high") or [1.0] * spec.action_dim, np.float32)
        actions = Box(low, high, dtype=np.float32)
        observations = Box(-np.inf, np.inf, (spec.observation_dim,), np.float32)
        return cls(_recorded(observations, actions, None), ActionBounds.of(actions, "the generator"))

    def observations(self, flat: np.ndarray) -> Any:
        """Convert `flat` rows [T, observation_dim] to observations [T, .] of the dataset's space."""
        space: Any = self.recorded.observation_space
        if not self.keys:
            return flat.astype(space.dtype)
        stops = np.cumsum([space[key].shape[0] for key in self.keys])
        fields = dict(zip(self.keys, np.split(flat, stops[:-1], axis=1), strict=True))
        for key, column in (self.repeats or {}).items():
            fields[key] = fields["observation"][:, column : column + space[key].shape[0]]
        return {key: fields[key].astype(space[key].dtype) for key in space}

    def episodes(self, rows: Transitions) -> Iterator[EpisodeBuffer]:
        """Yield each row as a one-step episode, terminated or truncated at that step."""
        from minari.data_collector import EpisodeBuffer

        rows = rows.to("cpu")
        both = torch.stack([rows.observations, rows.next_observations], dim=1).numpy()  # [B, 2, observation_dim]
        actions = self.bounds.to_box(rows.actions.numpy()).astype(self.recorded.action_space.dtype)
        rewards, ended = rows.rewards.double().numpy(), rows.terminations.numpy() > 0.5
        for k in range(len(rows)):
            fields: dict[str, Any] = {  # annotated as lists, but Minari accepts arrays
                "observations": self.observations(both[k]),
                "actions": actions[k : k + 1],
                "rewards": rewards[k : k + 1],
                "terminations": ended[k : k + 1],
                "truncations": ~ended[k : k + 1],
                "infos": {},
            }
            yield EpisodeBuffer(**fields)


def write_rows(
    dataset_id: str,
    rows: Transitions,
    layout: Layout,
    metadata: Mapping[str, Any],
    real: MinariDataset | None = None,
) -> Path:
    """Write generated `rows`, after the episodes of `real`, as a new Minari dataset; returns its folder.

    Raises InputError if the id is taken or the store cannot be written to.
    """
    total = len(rows) + (real.total_episodes if real else 0)
    described = {
        "algorithm_name": metadata.get("algorithm_name", "diffusion"),
        "description": f"{len(rows)} transitions generated by a diffusion model, each an episode of one step"
        + (f", after {total - len(rows)} real episodes." if real else "."),
        "generated": True,
        "generated_episodes": [total - len(rows), total],
    }
    episodes = chain(_copies(real), layout.episodes(rows))
    with new_dataset(dataset_id) as data, progress_bar(f"write {dataset_id}", total) as bar:
        counted = (episode for episode in episodes if bar.update() or True)
        write_dataset(data, dataset_id, layout.recorded, counted, described | dict(metadata))
    return local.folder_of(dataset_id)


def check_size(num_rows: int, layout: Layout) -> None:
    """Warn about the size and writing time of one-step episodes; raises InputError if the disk is too small."""
    fields = len(getattr(layout.recorded.observation_space, "spaces", ("",)))
    size, minutes = num_rows * (BYTES_PER_EPISODE + BYTES_PER_FIELD * fields), num_rows * SECONDS_PER_EPISODE / 60
    existing = next(path for path in (local.store(), *local.store().absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    need = f"{num_rows:,} generated rows take about {size / 1e9:.2g} GB as one-step episodes of a Minari dataset"
    if size > free:
        raise InputError(f"{need}, {existing} has {free / 1e9:.2g} GB left; a table (.npz, .hdf5) is 100 times smaller")
    print(f"warning: {need}, and {minutes:.1f} minutes to write", file=sys.stderr)


def open_dataset(name: str | Path) -> MinariDataset:
    """Open the Minari dataset `name` (id or folder) with its spaces; call after `load_dataset` has validated it.

    Raises InputError if it is a table.
    """
    folder = Path(name).expanduser()
    if folder.suffix in FILES:
        raise InputError(f"{name} is a table, expected a Minari dataset: an id, or a folder")
    from minari import MinariDataset

    folder = folder if folder.is_dir() else local.fetch(str(name))
    return MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)


def _copies(source: MinariDataset | None) -> Iterable[EpisodeBuffer]:
    """Yield the episodes of `source` unchanged."""
    from minari.data_collector import EpisodeBuffer

    for episode in source.iterate_episodes() if source else ():
        names = ("observations", "actions", "rewards", "terminations", "truncations", "infos")
        yield EpisodeBuffer(**{name: getattr(episode, name) for name in names})


def _recorded(observations: gym.Space, actions: gym.Space, spec: Any) -> gym.Env:
    """A placeholder environment with only spaces and a specification."""
    import gymnasium as gym

    recorded = gym.Env()
    recorded.observation_space, recorded.action_space, recorded.spec = observations, actions, spec
    return recorded


def _column(part: np.ndarray, whole: np.ndarray) -> int:
    """First column of the copy of `part` [T, .] inside `whole` [T, .]."""
    width = part.shape[1]
    columns = range(whole.shape[1] - width + 1)
    return next(k for k in columns if np.array_equal(whole[:, k : k + width], part))
