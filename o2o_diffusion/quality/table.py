"""Print the report: the verdict, and tables with the meaning and the best value of each number."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 100
KINDS = ("generated", "floor", "copier", "ceiling")
MEANINGS = {
    "auc": ("AUC of trees, own label", "floor"),
    "actions": ("deviation of actions / real", "1"),
    "outcomes": ("deviation of outcomes / real", "1"),
    "outside_range": ("rows outside the data's range", "floor"),
    "at_limits": ("entries at the ends of the range", "floor"),
    "duplicates": ("rows that repeat another", "floor"),
    "dropped": ("rows that are not finite", "0"),
    "terminations": ("termination rate", "floor"),
    "missed_endings": ("endings that are not marked", "floor"),
    "false_endings": ("marked rows that are no endings", "floor"),
    "novelty": ("distance to training rows / real", "1"),
    "auc_other": ("AUC of trees, other label", "floor"),
    "js_observations": ("Jensen-Shannon (nats), states", "0"),
    "js_actions": ("Jensen-Shannon (nats), actions", "0"),
    "js_transitions": ("Jensen-Shannon (nats), transitions", "0"),
    "online_probability": ("P(classifier says online)", "floor"),
    "marginal": ("marginals, 1 - KS, mean", "1"),
    "marginal_worst": ("marginals, 1 - KS, worst", "1"),
    "correlation": ("correlations, 1 - mean difference", "1"),
    "sliced_wasserstein_1": ("sliced Wasserstein-1 (stds)", "0"),
    "sliced_wasserstein_2": ("sliced Wasserstein-2 (stds)", "0"),
    "mmd": ("squared MMD", "0"),
    "frechet": ("Frechet distance (stds)", "0"),
    "dynamics_error": ("dynamics error / change, mean", "0"),
    "dynamics_median": ("dynamics error / change, median", "0"),
    "dynamics_ratio": ("dynamics error / real rows' error", "1"),
    "dynamics_share": ("share of rows simulated", "floor"),
    "reward_error": ("squared error of rewards", "0"),
    "termination_agreement": ("terminations as simulated", "1"),
    "density": ("density", "1"),
    "coverage": ("coverage", "0.97"),
    "log_prob": ("log-probability of the policy", "high"),
    "action_error": ("squared distance to its action", "low"),
    "outside_box": ("actions outside [-1, 1]", "0"),
}
"""Meaning of each number and its best value; "floor": the value of real rows."""


def show_report(report: Mapping[str, Any]) -> None:
    """Print the verdict, one table per label, then the notes."""
    console = Console(highlight=False, soft_wrap=True, width=WIDTH)
    console.print(f"verdict: {report['verdict']}\n")
    for label, numbers in report["labels"].items():
        table = Table(title=f"{label} label, {numbers['rows']['generated']:,} rows", title_justify="left")
        table.add_column("")
        for kind in KINDS:
            table.add_column(kind, justify="right")
        table.add_column("best", justify="right")
        for name, (meaning, best) in MEANINGS.items():
            if name in numbers:
                table.add_row(meaning, *(shown(numbers[name].get(kind)) for kind in KINDS), best)
        console.print(table)
    for note in report.get("notes", ()):
        console.print(f"note: {note}")


def shown(value: float | None) -> str:
    """Format `value` with three decimals, or in scientific notation if it is tiny; "" for None."""
    return "" if value is None else f"{value:.3f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"
