"""Vectors from spaces: how observations are flattened and actions rescaled, the same for datasets and environments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from o2o_diffusion.errors import InputError

if TYPE_CHECKING:
    import gymnasium as gym

Observations = np.ndarray | Mapping[str, Any]
"""[..., observation_dim], or a goal environment's fields: such vectors, or fields of their own (FrankaKitchen)."""


def choose_keys(episodes: Iterable[Observations]) -> tuple[str, ...]:
    """The fields to flatten, sorted by name; none where observations are plain vectors.

    A field inside a field is called "outer.inner". `achieved_goal` is left out when its values repeat inside
    `observation` in every episode (PointMaze, 6-d), and kept where they do not (AntMaze-v4, 31-d, whose `observation`
    has no position). Fields of an episode: [T+1, .].
    """
    keys: tuple[str, ...] = ()
    offsets: dict[str, set[int]] = {}  # columns of `observation` where a goal has begun in every episode so far
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
    """[..., observation_dim] float32: the fields `keys` side by side; a plain vector where there are none."""
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which the validation reports
        if not isinstance(observations, Mapping):
            return np.asarray(observations, dtype=np.float32)
        parts = _fields(observations)
        return np.concatenate([parts[key] for key in keys], axis=-1, dtype=np.float32, casting="unsafe")


def observation_dim(space: gym.Space, keys: tuple[str, ...], where: str) -> int:
    """Length of the vectors that `flatten` makes of `space`; raises InputError where it is not made of vectors."""
    from gymnasium import spaces

    parts: dict[str, Any] = _fields(space) if isinstance(space, spaces.Dict) else {"": space}
    missing = [key for key in keys or ("",) if key not in parts]
    if missing:
        raise InputError(f"{where}: observations have the fields {sorted(parts)}, expected {list(keys)}")
    chosen = [parts[key] for key in keys or ("",)]
    if not all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in chosen):
        raise InputError(f"{where}: observations must be vectors (Box of one axis, or a Dict of them), got {space}")
    return sum(part.shape[0] for part in chosen)


def _fields(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of `nested` and of the fields in it."""
    parts = {}
    for key, value in nested.items():
        parts |= _fields(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return parts


@dataclass(frozen=True, eq=False)
class ActionBounds:
    """The box in which an environment takes its actions; data and agents see [-1, 1]. Both [action_dim] float32."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, space: gym.Space, where: str) -> ActionBounds:
        """Bounds of an action space; raises InputError where it is not a bounded vector (discrete actions)."""
        from gymnasium import spaces

        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise InputError(f"{where}: actions must be a bounded vector (Box), got {space}")
        return cls(space.low.astype(np.float32), space.high.astype(np.float32))

    @property
    def is_unit(self) -> bool:
        """Whether nothing is rescaled."""
        return bool(np.all(self.low == -1) and np.all(self.high == 1))

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the environment's box, in [-1, 1]."""
        return actions if self.is_unit else 2 * (actions - self.low) / (self.high - self.low) - 1

    def to_box(self, actions: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1] (clipped), in the environment's box."""
        actions = actions.clip(-1, 1)
        return actions if self.is_unit else self.low + (actions + 1) / 2 * (self.high - self.low)
