"""Remarks on a report: how to read numbers that would mislead."""

from collections.abc import Mapping
from typing import Any

CLOSE = 0.5
"""Distance to training rows, relative to held-out rows', below which rows are called copies."""
SHARE = 0.05
"""Difference in the share of simulated rows that is worth a remark."""


def remarks(labels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each label whose rows are copies, or whose dynamics error is of other rows than the real one."""
    found = []
    for label, numbers in labels.items():
        novelty = numbers.get("novelty", {}).get("generated", 1.0)
        if novelty < CLOSE:
            found.append(f"{label}: rows are copies: {novelty:.2f} times as far from training rows as real rows are")
        share = numbers.get("dynamics_share", {})
        generated, floor = share.get("generated", 1.0), share.get("floor", 1.0)
        if abs(generated - floor) > SHARE:
            sizes = f"{generated:.0%} of the generated but {floor:.0%} of the real rows"
            found.append(f"{label}: the simulator can be set to {sizes}; dynamics errors are of these alone")
    return found
