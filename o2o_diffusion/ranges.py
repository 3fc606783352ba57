"""Ranges of settings, declared with the field: `Annotated[int, "meaning", Ge(0)]`.

Bounds on a tuple apply to every element; null is always accepted. Relations between fields belong in `__post_init__`.
"""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt
from omegaconf import OmegaConf

BOUNDS = {
    "ge": (">=", "at least", operator.ge),
    "gt": (">", "more than", operator.gt),
    "le": ("<=", "at most", operator.le),
    "lt": ("<", "less than", operator.lt),
}


def written(metadata: Iterable[Any]) -> str:
    """Format the bounds in a field's metadata for `--help`, e.g. "[>= 0, < 1]"; empty without bounds."""
    signs = ", ".join(f"{BOUNDS[kind][0]} {limit}" for kind, limit in _bounds(metadata))
    return f"[{signs}]" if signs else ""


def violations(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield one line per value of the structured config `node` outside its field's range; names start with `prefix`.

    Infinite values are rejected unless the field's default is infinite; NaN is always rejected.
    """
    cls: Any = OmegaConf.get_type(node)
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        metadata = getattr(hints[field.name], "__metadata__", ())
        may_be_infinite = isinstance(field.default, float) and math.isinf(field.default)
        for name, value in _elements(prefix + field.name, node[field.name]):
            if is_dataclass(OmegaConf.get_type(value)):
                yield from violations(value, f"{name}.")
            elif isinstance(value, int | float) and (expected := _expected(value, metadata, may_be_infinite)):
                yield f"setting '{name}': {value}, expected {expected}"


def _expected(value: float, metadata: Iterable[Any], may_be_infinite: bool) -> str:
    """The condition violated by `value`; empty if none."""
    if not math.isfinite(value) and (math.isnan(value) or not may_be_infinite):
        return "a finite number"
    failed = [f"{BOUNDS[kind][1]} {limit}" for kind, limit in _bounds(metadata) if not BOUNDS[kind][2](value, limit)]
    return " and ".join(failed)


def _bounds(metadata: Iterable[Any]) -> list[tuple[str, Any]]:
    """(kind, limit) of every bound in `metadata`."""
    parts = [part for item in metadata for part in (item if isinstance(item, Interval) else (item,))]
    bounds = [part for part in parts if isinstance(part, Ge | Gt | Le | Lt)]
    return [(kind, getattr(bound, kind)) for bound in bounds for kind in BOUNDS if hasattr(bound, kind)]


def _elements(name: str, value: Any) -> list[tuple[str, Any]]:
    """The named value, or the elements of a list or tuple, named by index."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    return [(name, value)]
