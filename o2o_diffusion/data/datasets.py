"""Load offline data as episodes from a Minari id or folder, a D4RL HDF5 file, or an .npz table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from o2o_diffusion.data import local
from o2o_diffusion.data.hdf5 import check_own_content
from o2o_diffusion.data.scores import ReferenceScores, reference_scores
from o2o_diffusion.data.spaces import ActionBounds, choose_keys, flatten, observation_dim
from o2o_diffusion.data.tables import FILES, read_table, split_table
from o2o_diffusion.data.validation import check_flags, checked_episode
from o2o_diffusion.data.writing import MANIFEST
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.storage import damage
from o2o_diffusion.types import EnvironmentSpec, Episode, TransitionSpec

if TYPE_CHECKING:
    from minari import EpisodeData


@dataclass(frozen=True, eq=False)
class Dataset:
    """Episodes and the known properties of their task.

    `observation_keys` are the flattened fields of dict observations, in order; the environment must use the same.
    `action_bounds` is the recorded action box, or None for a table, which has none (actions are in [-1, 1]).
    """

    name: str
    episodes: tuple[Episode, ...]
    spec: TransitionSpec
    observation_keys: tuple[str, ...] = ()
    action_bounds: ActionBounds | None = None
    environment: EnvironmentSpec | None = None
    scores: ReferenceScores | None = None

    @cached_property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @cached_property
    def num_transitions(self) -> int:
        """Number of transitions in all episodes."""
        return sum(len(episode) for episode in self.episodes)

    @cached_property
    def mean_return(self) -> float | None:
        """Mean raw return of the episodes; None if there are none."""
        return float(np.mean([episode.rewards.sum() for episode in self.episodes])) if self.episodes else None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the episodes' arrays, used to verify the data of a resumed run."""
        digest = hashlib.sha256()
        for episode in self.episodes:
            digest.update(b"%d%d" % (len(episode), episode.terminated))
            for array in (episode.observations, episode.actions, episode.rewards):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def without_episodes(self) -> Dataset:
        """Return a copy without the episodes, to free memory; keeps sizes, mean return and fingerprint."""
        names = ("num_episodes", "num_transitions", "mean_return", "fingerprint")
        known = {name: getattr(self, name) for name in names}
        released = replace(self, episodes=())
        vars(released).update(known)  # fill the cached properties
        return released

    def subset(self, num_episodes: int, seed: int) -> Dataset:
        """Return a copy with `num_episodes` whole episodes: one drawn from each of as many equal, consecutive parts.

        Every stage of a recording stays represented. Raises InputError if there are fewer episodes.
        """
        if num_episodes > self.num_episodes:
            raise InputError(f"{self.name} has {self.num_episodes} episodes, fewer than the {num_episodes} to keep")
        rng = np.random.default_rng(seed)
        kept = [rng.choice(part) for part in np.array_split(np.arange(self.num_episodes), num_episodes)]
        return replace(self, episodes=tuple(self.episodes[k] for k in kept))

    @property
    def provenance(self) -> dict[str, Any]:
        """The dataset's name, checksum and spaces as plain data, saved with everything derived from it."""
        return {
            "dataset": self.name,
            "dataset_sha256": self.fingerprint,
            "environment": asdict(self.environment) if self.environment else None,
            "observation_keys": list(self.observation_keys),
            "action_low": self.action_bounds.low.tolist() if self.action_bounds else None,
            "action_high": self.action_bounds.high.tolist() if self.action_bounds else None,
        }


def load_dataset(name: str) -> Dataset:
    """Load the dataset `name`: a table by its suffix, an existing folder, or otherwise a Minari id.

    A local path takes precedence over an id, and a local copy over a download. Raises InputError if the dataset is
    missing, damaged, or violates the conventions of `Episode`.
    """
    path = Path(name).expanduser()
    if path.suffix in FILES:
        return _load_table(path)
    return _load_minari(path if path.is_dir() else local.fetch(name))


def _load_table(path: Path) -> Dataset:
    if not path.is_file():
        names = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise InputError(f"no file {path}{nearest(path.name, names)}")
    episodes, spec = split_table(path.name, read_table(path))
    if not episodes:
        raise InputError(f"{path} holds no transitions")
    return Dataset(path.stem, episodes, spec)


def _load_minari(folder: Path) -> Dataset:
    data = folder / "data" if (folder / "data").is_dir() else folder
    if (data / MANIFEST).is_file() and (altered := damage(data, MANIFEST)):
        raise InputError(f"dataset {data}: {altered}")
    metadata = _metadata(data)
    for file in data.glob("*.hdf5"):
        try:
            check_own_content(file)
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error}") from error
    from minari import MinariDataset

    try:
        dataset = MinariDataset(data)
        name = dataset.id
        raw = list(_read_episodes(data, dataset))
        keys = choose_keys(episode.observations for episode in raw)
    except (AssertionError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{data} is not a readable Minari dataset: {error}") from error
    bounds = ActionBounds.of(dataset.action_space, name)
    spec = TransitionSpec(observation_dim(dataset.observation_space, keys, name), len(bounds.low))
    episodes = tuple(_episode(f"{name}: episode {n}", e, keys, spec, bounds) for n, e in enumerate(raw))
    num_steps = sum(len(episode) for episode in episodes)
    if not episodes or num_steps != metadata["total_steps"]:
        raise InputError(f"{name}: {data} holds {num_steps} steps, its metadata says {metadata['total_steps']}")
    environment = _environment(metadata, keys)
    spec = replace(spec, environment=environment, data_environment=environment)
    scores = reference_scores(environment.id if environment else None, metadata)
    return Dataset(name, episodes, spec, keys, bounds, environment, scores)


def _metadata(data: Path) -> dict[str, Any]:
    """Read the raw metadata; it must have the spaces, or Minari would create the named environment to get them."""
    path = data / "metadata.json"
    if not path.is_file():
        raise InputError(f"{data.absolute()} is not a Minari dataset: it has no metadata.json (nor data/metadata.json)")
    try:
        metadata = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    needed = ("observation_space", "action_space", "total_steps", "data_format", "dataset_id", "minari_version")
    missing = [key for key in needed if key not in metadata]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}")
    return metadata


def _read_episodes(data: Path, dataset: Any) -> Iterator[EpisodeData]:
    """Yield episodes one at a time, so that the error names an unreadable one."""
    for number, index in enumerate(dataset.episode_indices):
        try:
            yield dataset[number]
        except Exception as error:  # damaged files raise many kinds of exceptions
            raise InputError(f"{data}: episode {index} cannot be read: {error}") from error


def _episode(
    where: str, episode: EpisodeData, keys: tuple[str, ...], spec: TransitionSpec, bounds: ActionBounds
) -> Episode:
    """Convert a Minari episode; terminated as recorded, even if the time limit was reached in the same step."""
    check_flags(where, len(episode.rewards), terminations=episode.terminations, truncations=episode.truncations)
    try:
        observations = flatten(episode.observations, keys)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: observations with the fields {list(keys)} cannot be flattened: {error}") from error
    terminated = bool(len(episode.rewards) and episode.terminations[-1])
    arrays = (observations, np.asarray(episode.actions), np.asarray(episode.rewards))
    return checked_episode(where, *arrays, terminated=terminated, spec=spec, bounds=bounds)


def _environment(metadata: dict[str, Any], keys: tuple[str, ...]) -> EnvironmentSpec | None:
    """The recorded environment: id, keyword arguments and step limit; all other metadata is ignored."""
    if not metadata.get("env_spec"):
        return None
    try:
        spec = json.loads(metadata["env_spec"])
        return EnvironmentSpec(spec["id"], spec.get("kwargs") or {}, spec.get("max_episode_steps"), keys)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{metadata['dataset_id']}: its env_spec cannot be read ({error})") from error
