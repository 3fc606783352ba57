"""Validation of incoming data, not repeated later: shapes, finite numbers, bounds, flags.

Each failure raises InputError with one line: dataset, episode, step and field.
"""

from __future__ import annotations

import numpy as np

from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.errors import InputError
from o2o_diffusion.types import Episode, TransitionSpec

TOLERANCE = 1e-3
"""Rounding error of an action entry tolerated outside [-1, 1]; it is clipped."""


def checked_episode(
    where: str,
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    *,
    terminated: bool,
    spec: TransitionSpec,
    bounds: ActionBounds | None = None,
) -> Episode:
    """Convert raw arrays to an episode in the package's conventions.

    Shapes: observations [T+1, observation_dim], actions [T, action_dim] in `bounds` ([-1, 1] if None), rewards [T].
    `where` names the dataset and episode. Raises InputError if lengths, widths, numbers or bounds are wrong.
    """
    if len(rewards) == 0:
        raise InputError(f"{where} is empty")
    observations = _checked(where, "observations", observations, (len(rewards) + 1, spec.observation_dim))
    actions = _checked(where, "actions", actions, (len(rewards), spec.action_dim))
    rewards = _checked(where, "rewards", rewards, (len(rewards),))
    if bounds is not None:
        actions = bounds.to_unit(actions)
    outside = np.abs(actions) > 1 + TOLERANCE
    if outside.any():
        step, entry = np.argwhere(outside)[0]
        value = actions[step, entry]
        raise InputError(f"{where}, step {step}: entry {entry} of actions is {value:.4g}, expected in [-1, 1]")
    return Episode(observations, actions.clip(-1, 1), rewards, bool(terminated))


def check_flags(where: str, length: int, **flags: np.ndarray) -> None:
    """Raise InputError unless each of an episode's `flags` has shape [`length`] and is set only at the last step."""
    for field, array in flags.items():
        if array.shape != (length,):
            raise InputError(f"{where}: {field} have shape {list(array.shape)}, expected {[length]}")
        if np.any(array[:-1]):
            step = int(np.argmax(array))
            raise InputError(f"{where}, step {step}: {field} is set before the episode's last step, {length - 1}")


def check_booleans(where: str, array: np.ndarray) -> None:
    """Raise InputError unless every entry of `array` [rows] is a bool, 0 or 1."""
    if array.dtype == np.bool_:
        return
    if not np.issubdtype(array.dtype, np.number):
        raise InputError(f"{where} are {array.dtype}, expected true or false, 1 or 0")
    wrong = ~np.isin(array, (0, 1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{where}: row {row} is {array[row]}, expected 1 or 0")


def check_real(where: str, array: np.ndarray) -> None:
    """Raise InputError unless `array` has real numbers or booleans."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} are {array.dtype}, expected real numbers")


def check_finite(where: str, array: np.ndarray) -> None:
    """Raise InputError unless `array` [rows, ...] has real, finite numbers."""
    check_real(where, array)
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise InputError(f"{where}: row {int(np.argmin(finite))} is not finite")


def _checked(where: str, field: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert `array` to float32; raises InputError unless it has `shape` and finite numbers."""
    if array.shape != shape:
        raise InputError(f"{where}: {field} have shape {list(array.shape)}, expected {list(shape)}")
    check_real(f"{where}: {field}", array)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        step, *entry = np.argwhere(~finite)[0].tolist()
        place = f"entry {entry[0]} of {field}" if entry else field
        raise InputError(f"{where}, step {step}: {place} is {array[(step, *entry)]}, expected a finite float32 number")
    return array
