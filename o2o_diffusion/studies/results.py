"""Results: the rows of finished runs, selected so that only comparable ones are compared."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from o2o_diffusion.studies.rows import is_old
from o2o_diffusion.studies.study import Study, group_of

Row = dict[str, Any]
METRICS = {
    "area_under_curve": "area under the curve",
    "score_at_switch": "at the switch",
    "worst_score": "worst after it",
    "final_score": "final",
}


class Results:
    """Rows with today's numbers, compared along the axis `compare` with its value `baseline`, all else equal.

    The values of the other axes form a group, which statistics treat as a task. A run repeated on another kind of
    processor counts once; `num_old` rows of other numbers are left out.
    """

    def __init__(self, rows: Sequence[Row], compare: str, baseline: str):
        self.compare, self.baseline = compare, baseline
        current = [row for row in rows if not is_old(row)]
        self.num_old = len(rows) - len(current)
        self.processors = Counter(row["processor"] for row in current)
        self.rows = sorted(current, key=lambda row: (-self.processors[row["processor"]], row["seed"]))

    @property
    def variants(self) -> list[str]:
        """Values of the compared axis, the baseline first."""
        found = dict.fromkeys(row["cell"][self.compare] for row in self.rows)
        return sorted(found, key=lambda name: name != self.baseline)

    @property
    def groups(self) -> list[str]:
        """All groups."""
        return list(dict.fromkeys(self.group(row) for row in self.rows))

    def group(self, row: Row) -> str:
        """The values of a row's other axes."""
        return group_of(row["cell"], self.compare)

    def runs(self, variant: str, group: str) -> list[Row]:
        """A variant's rows in a group, one per seed."""
        found: dict[int, Row] = {}
        for row in self._of(variant, group):
            found.setdefault(row["seed"], row)
        return [found[seed] for seed in sorted(found)]

    def pairs(self, variant: str, group: str) -> list[tuple[Row, Row]]:
        """Rows of a variant and of the baseline with the same seed and kind of processor, one pair per seed."""
        theirs = {(row["processor"], row["seed"]): row for row in self._of(self.baseline, group)}
        found: dict[int, tuple[Row, Row]] = {}
        for row in self._of(variant, group):
            if (place := (row["processor"], row["seed"])) in theirs:
                found.setdefault(row["seed"], (row, theirs[place]))
        return [found[seed] for seed in sorted(found)]

    def scores(self, variant: str, group: str, metric: str) -> list[float]:
        """A variant's scores in a group, one per seed."""
        return [row[metric] for row in self.runs(variant, group)]

    def differences(self, variant: str, group: str, metric: str) -> list[float]:
        """A variant's differences to the baseline in a group, one per pair."""
        return [ours[metric] - theirs[metric] for ours, theirs in self.pairs(variant, group)]

    def _of(self, variant: str, group: str) -> list[Row]:
        return [row for row in self.rows if row["cell"][self.compare] == variant and self.group(row) == group]


def results_of(study: Study, rows: Iterable[Row], *, seeds: int | None = None) -> Results:
    """The results of a study's cells, of all seeds or the first `seeds`.

    Rows of settings that the study no longer has are counted as old. A cell whose name has changed has its new one.
    """
    rows = [row for row in rows if seeds is None or row["seed"] < seeds]
    cells = list(study.cells(1))
    current = [row | {"cell": cell.values} for cell in cells for row in rows if row["key"] == cell.key]
    results = Results(current, study.config.compare, study.config.baseline)
    results.num_old += len([row for row in rows if row["key"] not in {cell.key for cell in cells}])
    return results
