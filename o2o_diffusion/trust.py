"""Which code may be imported because a name in a file or on the command line says so."""

import functools
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points

PACKAGE = __name__.partition(".")[0]
GROUPS = tuple(f"{PACKAGE}.{group}" for group in ("learners", "generators", "samplers", "tasks"))
"""Entry points by which an installed package offers components."""

_trusted = {PACKAGE}


def trust(modules: Iterable[str]) -> None:
    """Let components be imported from the top-level packages of `modules`, also from the working directory."""
    _trusted.update(module.partition(".")[0] for module in modules)
    if "" not in sys.path:
        sys.path.append("")  # last, so that it shadows nothing


def is_trusted(module: str) -> bool:
    """Whether the top-level package of `module` is this one, was trusted, or is installed as an entry point."""
    top = module.partition(".")[0]
    return top in _trusted or top in _installed()


@functools.cache
def _installed() -> frozenset[str]:
    points = (point for group in GROUPS for point in entry_points(group=group))
    return frozenset(point.value.partition(":")[0].partition(".")[0] for point in points)
