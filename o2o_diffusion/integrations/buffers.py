"""Mix generated rows into the batches of other libraries' replay buffers, by field name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.errors import InputError
from o2o_diffusion.types import Transitions

NAMES = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_observation", "next_obs"),
    "terminations": ("terminations", "termination", "terminated", "terminals", "dones", "done"),
}
"""Names of the fields of a transition in other libraries."""

OURS = {theirs: ours for ours, names in NAMES.items() for theirs in names}


class GeneratedRows(Protocol):
    """What a buffer needs of an augmenter."""

    step: int

    @property
    def num_generated(self) -> int:
        """Number of generated rows in its pool."""
        ...

    def observe(self, observations: Any, actions: Any, rewards: Any, next_observations: Any, terminations: Any) -> None:
        """Take real transitions, one or a batch."""
        ...

    def sample(self, num_samples: int) -> Transitions:
        """Draw generated rows."""
        ...


class AugmentedBuffer:
    """Proxy of a replay buffer that observes `add`, mixes generated rows into `sample` and forwards everything else.

    The buffer's `add` must take one transition, or one per environment, under common names (as in CleanRL and SB3: obs,
    next_obs, action, reward, done, infos); its `sample(n)` must return a NamedTuple, a dataclass or a dict of tensors
    or arrays. Batches start with the real rows, and have no others while the pool is empty. A `done` marked as a time
    limit in `infos` ("TimeLimit.truncated") is not a termination. Pickling keeps the buffer alone.
    """

    def __init__(self, replay_buffer: Any, augmenter: GeneratedRows, ratio: float | Callable[[int], float]):
        check_ratio(ratio, augmenter.step)
        self.replay_buffer, self.augmenter, self.ratio = replay_buffer, augmenter, ratio
        self._add = inspect.signature(replay_buffer.add)

    def add(self, *args: Any, **kwargs: Any) -> Any:
        """Observe a transition and add it to the buffer; raises InputError if `add` does not take all of its fields."""
        given = self._add.bind(*args, **kwargs).arguments
        arrays = {OURS[name]: value for name, value in given.items() if name in OURS}
        missing = [name for name in NAMES if name not in arrays]
        if missing:
            raise InputError(
                f"{type(self.replay_buffer).__name__}.add({', '.join(given)}) has no {missing[0]} under any of the "
                f"names {', '.join(NAMES[missing[0]])}: call augmenter.observe yourself"
            )
        arrays["terminations"] = without_time_limits(arrays["terminations"], given.get("infos", ()))
        self.augmenter.observe(**arrays)
        return self.replay_buffer.add(*args, **kwargs)

    def sample(self, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        """Sample `batch_size` rows in the buffer's own type, a share `ratio` of them generated."""
        if any(hasattr(value, "normalize_obs") for value in (*args, *kwargs.values())):
            raise InputError("a buffer that normalizes with VecNormalize: use integrations.sb3.AugmentedReplayBuffer")
        num_generated = share(self.augmenter, self.ratio, batch_size)
        real = self.replay_buffer.sample(max(1, batch_size - num_generated), *args, **kwargs)
        if not num_generated:
            return real
        discount = getattr(self.replay_buffer, "gamma", None)
        return mixed(real, batch_size - num_generated, self.augmenter.sample(num_generated), discount=discount)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "replay_buffer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.replay_buffer, name)

    def __len__(self) -> int:
        return len(self.replay_buffer)

    def __reduce__(self):
        return _itself, (self.replay_buffer,)


def _itself(replay_buffer: Any) -> Any:
    return replay_buffer


def check_ratio(ratio: float | Callable[[int], float], step: int) -> float:
    """Share of generated rows at `step`; raises InputError unless it is a number in [0, 1]."""
    value = ratio(step) if callable(ratio) else ratio
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
        raise InputError(f"ratio is {value!r} at step {step}, expected the share of generated rows, 0 to 1")
    return float(value)


def share(augmenter: GeneratedRows, ratio: float | Callable[[int], float], batch_size: int) -> int:
    """Number of generated rows in a batch; 0 while the pool is empty."""
    return round(check_ratio(ratio, augmenter.step) * batch_size) if augmenter.num_generated else 0


def without_time_limits(dones: Any, infos: Any) -> np.ndarray:
    """[B] terminations: `dones` except those that `infos` marks as time limits.

    `infos` is a sequence with one dict per environment (SB3). The dict of a Gymnasium vector environment is ignored,
    because its terminations are already separate.
    """
    terminations = np.asarray(dones.detach().cpu() if isinstance(dones, Tensor) else dones, dtype=np.float32).reshape(
        -1
    )
    if not isinstance(infos, Sequence) or not len(infos):
        return terminations
    truncated = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
    return terminations * (1 - np.array(truncated, dtype=np.float32))


def mixed(real: Any, num_real: int, generated: Transitions, *, discount: float | None = None) -> Any:
    """Concatenate the first `num_real` rows of `real` and all `generated` rows, as a new `type(real)`.

    Shapes, dtypes and devices are those of `real`. Fields that are None or hold no rows stay unchanged; `discounts`
    [B, 1] of n-step buffers are `discount` for generated rows, which are single steps. Raises InputError if another
    field has a value for each row.
    """
    columns = _columns(real)
    lengths = {OURS[name]: len(value) for name, value in columns.items() if name in OURS}
    missing = [name for name in NAMES if name not in lengths]
    if missing:
        raise InputError(f"{type(real).__name__} has no {missing[0]} under any of {', '.join(NAMES[missing[0]])}")
    for name, value in columns.items():
        if name in OURS:
            columns[name] = _joined(value, num_real, getattr(generated, OURS[name]))
        elif not isinstance(value, (Tensor, np.ndarray)) or value.ndim == 0 or len(value) != lengths["rewards"]:
            continue
        elif name == "discounts" and discount is not None:
            columns[name] = _joined(value, num_real, torch.full((len(generated),), discount))
        else:
            raise InputError(f"{type(real).__name__}.{name} has a value for each row, which generated rows don't have")
    return type(real)(**columns)


def _columns(batch: Any) -> dict[str, Any]:
    """Fields of a batch by name."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "_fields"):
        return {name: getattr(batch, name) for name in batch._fields}
    if is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    raise InputError(f"batches are {type(batch).__name__}, expected a NamedTuple, a dataclass or a dict of rows")


def _joined(real: Tensor | np.ndarray, num_real: int, generated: Tensor) -> Tensor | np.ndarray:
    """Concatenate to [num_real + B, ...] with the shape, dtype and device of `real`."""
    generated = generated.reshape(len(generated), *real.shape[1:])
    if isinstance(real, Tensor):
        return torch.cat([real[:num_real], generated.to(real.device, real.dtype)])
    return np.concatenate([real[:num_real], generated.cpu().numpy().astype(real.dtype)])
