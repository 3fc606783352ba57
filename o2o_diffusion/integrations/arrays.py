"""Validate and convert user arrays to Transitions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.data.validation import TOLERANCE
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Episode, Source, Transitions, TransitionSpec

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminations")

Data = str | Path | Mapping[str, Any] | TransitionSpec
"""A Minari id, a folder, an .hdf5 or .npz file, a dict of arrays by field, or dimensions without rows."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Offline data: dimensions, action bounds, and rows as episodes or as single transitions."""

    spec: TransitionSpec
    bounds: ActionBounds
    episodes: tuple[Episode, ...] = ()
    transitions: Transitions | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(part) for part in self.episodes) + (len(self.transitions) if self.transitions else 0)

    def store(self, replay: Replay, source: Source) -> None:
        """Add the rows, and the returns of whole episodes, to the pool of `source`."""
        if self.transitions is not None:
            replay.pools[source].append(self.transitions)
        else:
            replay.load(self.episodes, source)


def read_rows(name: str, data: Data, low: Any = None, high: Any = None) -> Rows:
    """Read the rows of `data`, the argument `name`.

    Actions in a dict are between `low` and `high` (scalars or [action_dim]; None: the dataset's bounds, else -1 and 1);
    .hdf5 and .npz files have actions in [-1, 1], Minari datasets have their own bounds. Raises InputError (one line) if
    something is missing or wrong.
    """
    if isinstance(data, TransitionSpec):
        return Rows(data, action_bounds(data.action_dim, low, high))
    if isinstance(data, Mapping):
        return _read_arrays(name, data, low, high)
    if not isinstance(data, (str, Path)):
        raise InputError(f"{name} is a {type(data).__name__}, expected an id, a path, a dict of arrays, or a spec")
    from o2o_diffusion.data.datasets import load_dataset

    dataset = load_dataset(str(data))
    bounds = action_bounds(dataset.spec.action_dim, low, high)
    recorded = dataset.action_bounds or bounds
    given = low is not None or high is not None
    if given and not (np.allclose(bounds.low, recorded.low) and np.allclose(bounds.high, recorded.high)):
        raise InputError(
            f"{name} {dataset.name} has actions between {recorded.low.tolist()} and {recorded.high.tolist()}, "
            f"action_low and action_high say {bounds.low.tolist()} and {bounds.high.tolist()}"
        )
    return Rows(dataset.spec, recorded, dataset.episodes, provenance=dataset.provenance)


def action_bounds(action_dim: int, low: Any = None, high: Any = None) -> ActionBounds:
    """Bounds [action_dim] from scalars or vectors (None: -1 and 1); raises InputError unless `low` is below `high`."""
    sides = []
    for name, side, default in (("action_low", low, -1.0), ("action_high", high, 1.0)):
        array = to_numpy(name, default if side is None else side)
        if array.shape not in ((), (1,), (action_dim,)) or not np.isfinite(array).all():
            raise InputError(f"{name} is {array.tolist()}, expected a number or {action_dim} of them")
        sides.append(np.broadcast_to(array, (action_dim,)).copy())
    if not (sides[0] < sides[1]).all():
        raise InputError(f"action_low {sides[0].tolist()} is not below action_high {sides[1].tolist()}")
    return ActionBounds(*sides)


def to_transitions(where: str, spec: TransitionSpec, bounds: ActionBounds, *arrays: Any, source: Source) -> Transitions:
    """Convert five `arrays` (NumPy, torch or lists; one row or B rows), in the order of `FIELDS`, to Transitions.

    Shapes: observations, next_observations [B, ...], flattened to [B, observation_dim]; actions [B, action_dim] in
    `bounds`; rewards, terminations [B] or [B, 1]; float32 on the CPU. Raises InputError, naming `where`, the field and
    the row, if a value has the wrong width, is not finite, or is out of bounds.
    """
    fields = {name: to_numpy(f"{where}: {name}", array) for name, array in zip(FIELDS, arrays, strict=True)}
    size = len(fields["observations"]) if fields["observations"].ndim > 1 else 1
    widths = dict.fromkeys(("observations", "next_observations"), spec.observation_dim) | {"actions": spec.action_dim}
    for name, array in fields.items():
        shape = (size, widths[name]) if name in widths else (size,)
        if array.size != math.prod(shape):
            raise InputError(f"{where}: {name} have shape {list(array.shape)}, expected {list(shape)}")
        fields[name] = array.reshape(shape)
    _check_values(where, bounds, fields)
    fields["actions"] = bounds.to_unit(fields["actions"]).clip(-1, 1)
    return Transitions.create(**{name: torch.from_numpy(array) for name, array in fields.items()}, source=source)


def _check_values(where: str, bounds: ActionBounds, fields: Mapping[str, np.ndarray]) -> None:
    """Raise InputError for the first row with non-finite values or with actions or terminations out of range."""
    for name, array in fields.items():
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise InputError(f"{where}, row {row}: {name} are {array[row].tolist()}, expected finite numbers")
    outside = (np.abs(bounds.to_unit(fields["actions"])) > 1 + TOLERANCE).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        raise InputError(
            f"{where}, row {row}: actions are {fields['actions'][row].tolist()}, expected between "
            f"{bounds.low.tolist()} and {bounds.high.tolist()}; set action_low and action_high"
        )
    terminations = fields["terminations"]
    if not ((terminations == 0) | (terminations == 1)).all():
        raise InputError(f"{where}: terminations must be 1 where the task ended and 0 elsewhere, also at a time limit")


def to_numpy(name: str, value: Any) -> np.ndarray:
    """Copy `value` to a float32 array; raises InputError if it is not numeric."""
    if isinstance(value, Mapping):
        raise InputError(f"{name} have the fields {sorted(value)}, expected vectors: flatten them")
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    try:
        with np.errstate(over="ignore"):
            return np.array(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are not numbers: {error}") from error


def _read_arrays(name: str, data: Mapping[str, Any], low: Any, high: Any) -> Rows:
    missing = [field for field in FIELDS if field not in data]
    if missing:
        raise InputError(f"{name} has no '{missing[0]}'{nearest(missing[0], data)}; it needs {', '.join(FIELDS)}")
    shapes = [to_numpy(f"{name}: {field}", data[field]).shape for field in ("observations", "actions")]
    if any(len(shape) != 2 or shape[0] == 0 for shape in shapes):
        raise InputError(f"{name}: observations {list(shapes[0])} and actions {list(shapes[1])} must be [rows, width]")
    spec = TransitionSpec(shapes[0][1], shapes[1][1])
    bounds = action_bounds(spec.action_dim, low, high)
    return Rows(
        spec,
        bounds,
        transitions=to_transitions(name, spec, bounds, *[data[field] for field in FIELDS], source=Source.OFFLINE),
    )
