"""Rows of a user's own run folders, compared by the component of one group."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import load
from o2o_diffusion.studies.keys import BOOKKEEPING
from o2o_diffusion.studies.results import Row
from o2o_diffusion.studies.rows import row_of
from o2o_diffusion.training.folders import SETTINGS, SUMMARY


def rows_of_runs(folders: Iterable[Path], compare: str) -> list[Row]:
    """Rows of finished run folders with the axes `compare` (a group, such as "generator") and "runs" (all else).

    Runs that differ in any setting but the seed are kept apart: their names say in which.
    """
    rows, variants, groups = [], [], []
    for folder in folders:
        plain: Any = OmegaConf.to_container(load(folder / SETTINGS), resolve=False)
        rest = {name: value for name, value in plain.items() if name not in BOOKKEEPING and name != compare}
        task, others = plain["task"], [name_of(rest[name]) for name in ("learner", "generator") if name in rest]
        variants.append((name_of(plain[compare]), plain[compare]))
        groups.append((" ".join([Path(task["dataset"] or task["environment"]).name, *others]), rest))
        rows.append(row_of(folder))
    cells = zip(rows, distinct(groups), distinct(variants), strict=True)
    return [row | {"cell": {"runs": group, compare: variant}} for row, group, variant in cells]


def finished(folder: Path) -> list[Path]:
    """The finished runs in `folder`, at any depth; raises InputError if there are none."""
    found = sorted(path.parent for path in folder.rglob(SUMMARY) if (path.parent / SETTINGS).exists())
    if not found:
        raise InputError(f"there is no finished run in '{folder}'")
    return found


def name_of(component: Mapping[str, Any]) -> str:
    """A component's name: the module of its class."""
    return str(component["target"]).split(".")[-2]


def distinct(named: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The names, each with the settings in which it differs from others of the same name."""
    flattened = [(name, dict(flat(settings))) for name, settings in named]
    values = defaultdict(lambda: defaultdict(set))
    for name, settings in flattened:
        for setting, value in settings.items():
            values[name][setting].add(value)
    return [
        " ".join([name, *(f"{key}={value}" for key, value in settings.items() if len(values[name][key]) > 1)])
        for name, settings in flattened
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of nested settings, with their values as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
