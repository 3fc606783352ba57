"""Flatten observations and rescale actions, identically for datasets and environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from o2o_diffusion.errors import InputError

if TYPE_CHECKING:
    import gymnasium as gym

Observations = np.ndarray | Mapping[str, Any]
"""[..., observation_dim], or the fields of a goal environment: vectors or nested fields (FrankaKitchen)."""


def choose_keys(episodes: Iterable[Observations]) -> tuple[str, ...]:
    """The fields to flatten, sorted by name; empty if observations are plain vectors.

    A nested field is named "outer.inner". `achieved_goal` is omitted if its values are repeated inside `observation`
    in every episode (PointMaze, 6-d), and kept otherwise (AntMaze-v4, 31-d: `observation` has no position). Fields of
    an episode: [T+1, .].
    """
    keys: tuple[str, ...] = ()
    offsets: dict[str, set[int]] = {}  # possible first columns of a goal in `observation`, over all episodes so far
    for episode in episodes:
        if not isinstance(episode, Mapping):
            return ()
        parts = _fields(episode)
        keys = tuple(sorted(parts))
        observation = parts.get("observation", np.empty(0))
        for key in keys:
            if key.partition(".")[0] == "achieved_goal":
                width = parts[key].shape[-1]
                begun = offsets.get(key, set(range(observation.shape[-1] - width + 1)))
                offsets[key] = {k for k in begun if np.array_equal(observation[:, k : k + width], parts[key])}
    return tuple(key for key in keys if not offsets.get(key))


def flatten(observations: Observations, keys: tuple[str, ...]) -> np.ndarray:
    """[..., observation_dim] float32: the fields `keys` concatenated, or the plain vector."""
    with np.errstate(over="ignore"):  # float32 overflow becomes inf, reported by the validation
        if not isinstance(observations, Mapping):
            return np.asarray(observations, dtype=np.float32)
        parts = _fields(observations)
        return np.concatenate([parts[key] for key in keys], axis=-1, dtype=np.float32, casting="unsafe")


def observation_dim(space: gym.Space, keys: tuple[str, ...], where: str) -> int:
    """Length of flattened observations of `space`; raises InputError if `space` does not consist of vectors."""
    from gymnasium import spaces

    parts: dict[str, Any] = _fields(space) if isinstance(space, spaces.Dict) else {"": space}
    missing = [key for key in keys or ("",) if key not in parts]
    if missing:
        raise InputError(f"{where}: observations have the fields {sorted(parts)}, expected {list(keys)}")
    chosen = [parts[key] for key in keys or ("",)]
    if not all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in chosen):
        raise InputError(f"{where}: observations must be vectors (Box of one axis, or a Dict of them), got {space}")
    return sum(part.shape[0] for part in chosen)


def keys_of_width(space: gym.Space, width: int) -> tuple[str, ...]:
    """Fields of a goal environment's dict observations that a flat observation of `width` entries holds, in order.

    All fields, or all but `desired_goal` (D4RL's tables of AntMaze); () for other spaces and widths.
    """
    from gymnasium import spaces

    names = tuple(_fields(space)) if isinstance(space, spaces.Dict) else ()
    candidates = (names, tuple(name for name in names if name != "desired_goal"))
    return next((keys for keys in candidates if keys and observation_dim(space, keys, "") == width), ())


def _fields(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of `nested`, with dotted names for nested fields."""
    parts = {}
    for key, value in nested.items():
        parts |= _fields(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return parts


@dataclass(frozen=True, eq=False)
class ActionBounds:
    """An environment's action box; data and agents use [-1, 1]. Both bounds are [action_dim] float32."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, space: gym.Space, where: str) -> ActionBounds:
        """Bounds of an action space; raises InputError if it is not a bounded vector (e.g. discrete actions)."""
        from gymnasium import spaces

        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise InputError(f"{where}: actions must be a bounded vector (Box), got {space}")
        return cls(space.low.astype(np.float32), space.high.astype(np.float32))

    @property
    def is_unit(self) -> bool:
        """Whether the box is already [-1, 1]."""
        return bool(np.all(self.low == -1) and np.all(self.high == 1))

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Rescale actions from the environment's box to [-1, 1]."""
        return actions if self.is_unit else 2 * (actions - self.low) / (self.high - self.low) - 1

    def to_box(self, actions: np.ndarray) -> np.ndarray:
        """Clip actions to [-1, 1] and rescale them to the environment's box."""
        actions = actions.clip(-1, 1)
        return actions if self.is_unit else self.low + (actions + 1) / 2 * (self.high - self.low)
