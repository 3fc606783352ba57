"""Rows: the results of finished runs, one JSON line each, kept when the run folders are gone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o2o_diffusion.errors import InputError
from o2o_diffusion.storage import Lines
from o2o_diffusion.studies.study import Cell
from o2o_diffusion.training.folders import SUMMARY
from o2o_diffusion.training.report import NUMBERS

CURVE = ("updates", "env_steps", "score", "score_se")
EVENTS = ("refresh", "shadow", "decision")
"""Kinds of logged lines about the generated rows."""


def row_of(folder: Path) -> dict[str, Any]:
    """The results in a finished run's folder: its summary, its score at each evaluation, its refreshes.

    Raises OSError or ValueError if the files can't be read.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [pick(line, CURVE) for line in lines if line["kind"] == "evaluation"]
    events = [line for line in lines if line["kind"] in EVENTS]
    summary = json.loads((folder / SUMMARY).read_text())
    return {"numbers": 0, "processor": "unknown", **summary, "curve": curve, "events": events}


def row_of_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """The results of a cell's run, with the cell."""
    settings = [setting for setting in cell.settings if not setting.startswith("seed=")]
    return {"cell": dict(cell.values), "key": cell.key, "settings": settings, **row_of(folder)}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows in a file; none if it is missing. Raises InputError if a line is no row."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not a row of results ({error}); remove the line") from error
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file as one line; raises OSError if it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if error := Lines(path).append(json.dumps(rounded(row))):
        raise error


def find_row(rows: Sequence[dict[str, Any]], cell: Cell, processor: str) -> dict[str, Any] | None:
    """The row of a cell with today's numbers, made on one kind of processor."""
    wanted = (cell.key, cell.seed, NUMBERS, processor)
    return next((row for row in rows if (row["key"], row["seed"], row["numbers"], row["processor"]) == wanted), None)


def is_old(row: dict[str, Any]) -> bool:
    """Whether the row was made by a version whose runs gave other results."""
    return row["numbers"] != NUMBERS


def pick(line: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The named entries of a line."""
    return {name: line[name] for name in names if name in line}


def rounded(value: Any) -> Any:
    """Numbers with six significant digits, to keep the files small."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
