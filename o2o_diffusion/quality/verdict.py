"""The verdict on generated rows: which of their numbers exceed the limits of a gate, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from o2o_diffusion.schedule import Gate


class Check(NamedTuple):
    """A number of a report, whose limit is the field of the same name in `Gate`, and a sentence about it.

    `says` has places for the value, formatted with `form`, and for the label of the rows.
    """

    name: str
    says: str
    form: str = "{:.0%}"


CHECKS = (
    Check("dropped", "{} of the {} rows are not finite"),
    Check("duplicates", "{} of the {} rows repeat another"),
    Check("outside_range", "{} of the {} rows are outside the data's range"),
    Check("at_limits", "{} of the numbers in the {} rows are at the ends of the data's range"),
    Check("missed_endings", "{} of the {} rows that end an episode are not marked as endings"),
    Check("actions", "actions are {} times as unusual for their states in the {} rows as in real ones", "{:.1f}"),
    Check("outcomes", "outcomes are {} times as unusual in the {} rows as in real ones", "{:.1f}"),
    Check("auc", "trees recognize generated rows with an AUC of {} among {} ones", "{:.2f}"),
)
"""In the order in which equally bad findings are reported."""


class Finding(NamedTuple):
    """A number of generated rows of one label, the same number of real rows, and its limit."""

    check: Check
    label: str
    value: float
    real: float
    limit: float

    @property
    def severity(self) -> float:
        """What the value exceeds that of real rows by, in units of the limit: more than 1 is a reason to refuse."""
        return (self.value - self.real) / max(self.limit, 1e-9)

    def __str__(self) -> str:
        value, real, limit = (self.check.form.format(number) for number in (self.value, self.real, self.limit))
        return f"{self.check.says.format(value, self.label)} (real rows {real}, limit {limit} more)"


@dataclass(frozen=True)
class Verdict:
    """Decision on generated rows, of which `rows` of the `asked_rows` are valid, and its reasons, the worst first.

    Rows without findings are accepted without being judged: the gate is open, or there are no real rows.
    """

    rows: int
    asked_rows: int
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, labels: Mapping[str, Mapping[str, Any]], gate: Gate, rows: int, asked_rows: int) -> "Verdict":
        """Hold the numbers of each label, {label: {name: {"generated", "floor"}}}, against the limits of `gate`."""
        findings = [
            Finding(
                check, label, numbers[check.name]["generated"], numbers[check.name]["floor"], getattr(gate, check.name)
            )
            for label, numbers in labels.items()
            for check in CHECKS
            if {"generated", "floor"} <= set(numbers.get(check.name, ()))
        ]
        return cls(rows, asked_rows, tuple(sorted(findings, key=lambda finding: -finding.severity)))

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings beyond their limits."""
        return tuple(finding for finding in self.findings if finding.severity > 1)

    @property
    def accepted(self) -> bool:
        """Whether to use the rows."""
        return not self.failed

    @property
    def metrics(self) -> dict[str, float]:
        """Every number by label and name, for a log."""
        return {f"{finding.label}_{finding.check.name}": finding.value for finding in self.findings}

    @property
    def summary(self) -> str:
        """The decision and its three worst reasons, one a line."""
        reasons = [f"- {finding}" for finding in self.findings[:3]] or ["- they were not judged"]
        return "\n".join(["accepted" if self.accepted else "refused", *reasons])

    def __str__(self) -> str:
        if not self.findings:
            return "accepted without being judged"
        if self.accepted:
            return f"accepted: nearest to a limit, {self.findings[0]}"
        return "refused: " + "; ".join(map(str, self.failed))
