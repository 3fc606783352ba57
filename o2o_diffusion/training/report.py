"""Run reports: the plan at the start, the summary table and the learning curve at the end."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from o2o_diffusion.storage import atomic_file, save_json

NUMBERS = 1
"""Version of the results of runs: raise it with every change after which the same settings give other numbers."""
FIRST_PART = 0.5
"""Initial share of the online phase in which to look for a collapse."""


def show_plan(rows: Mapping[str, str]) -> None:
    """Print the plan, one line per entry."""
    table = Table("name", Column(overflow="fold"), show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", value)
    _console().print(table)
    sys.stdout.flush()  # show it now, even if the output is a pipe


def summarize(evaluations: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, Any]:
    """Scores at the switch, at the worst point early in the online phase and at the end, merged with `run`.

    `gain_se` is the standard error of the mean gain, from the episodes of the first and the last evaluation.
    """
    first, last = evaluations[0], evaluations[-1]
    online = [e for e in evaluations if 0 < e["env_steps"] <= FIRST_PART * last["env_steps"]] or [last]
    worst = min(online, key=lambda evaluation: evaluation["score"])
    return {
        "numbers": NUMBERS,
        "score": last["unit"],
        "score_at_switch": first["score"],
        "score_at_switch_se": first["score_se"],
        "worst_early_score": worst["score"],
        "worst_early_step": worst["env_steps"],
        "worst_score": min(e["score"] for e in evaluations[1:] or [last]),
        "final_score": last["score"],
        "final_score_se": last["score_se"],
        "gain": last["score"] - first["score"],
        "gain_se": (first["score_se"] ** 2 + last["score_se"] ** 2) ** 0.5,
        "area_under_curve": sum(e["score"] for e in evaluations) / len(evaluations),
        **run,
    }


def show_summary(summary: Mapping[str, Any], paths: Mapping[str, Path]) -> None:
    """Print the summary table and the paths of all output files."""
    table = Table(title=f"score: {summary['score']}", title_justify="left", show_header=False)
    scores = {
        "after offline pretraining": f"{summary['score_at_switch']:.1f} ± {summary['score_at_switch_se']:.1f}",
        "worst in the first half of the online phase": (
            f"{summary['worst_early_score']:.1f} (step {summary['worst_early_step']})"
        ),
        "final": f"{summary['final_score']:.1f} ± {summary['final_score_se']:.1f}",
        "gain": f"{summary['gain']:+.1f} ± {summary['gain_se']:.1f}",
        "real steps taken": f"{summary['env_steps']:,}",
        "generated rows used": (
            f"{summary['generated_rows']:,} in {summary['refreshes']} refreshes, {summary['refused_refreshes']} refused"
        ),
        "gradient steps of the learner": f"{summary['updates']:,}",
    }
    for name, value in scores.items():
        table.add_row(name, value)
    table.add_section()
    for part, seconds in summary["seconds"].items():
        table.add_row(f"time: {part}", f"{seconds:.0f} s")
    _console().print(table)
    for name, path in paths.items():
        print(f"{name + ':':<16}{path}")


def show_seeds(summaries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print one line per seed, with the scores of its summary."""
    names = {
        "score_at_switch": "after offline pretraining",
        "worst_score": "worst online",
        "final_score": "final",
        "gain": "gain",
    }
    table = Table("seed", *names.values(), title=f"score: {summaries[0]['score']}", title_justify="left")
    for summary in summaries:
        table.add_row(str(summary["seed"]), *(f"{summary[name]:.1f}" for name in names))
    _console().print(table)
    print(f"runs: {folder}")


def save_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write the summary as JSON; raises OSError if `path` can't be written."""
    known = {name: None if value != value else value for name, value in summary.items()}  # JSON has no NaN
    save_json(path, known)


def save_curve(evaluations: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Plot the learning curve (mean ± standard error over evaluation episodes) against environment steps.

    Raises OSError if `path` can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)  # renders without a display
    axes = figure.subplots()
    steps = [e["env_steps"] for e in evaluations]
    scores = [e["score"] for e in evaluations]
    low = [e["score"] - e["score_se"] for e in evaluations]
    high = [e["score"] + e["score_se"] for e in evaluations]
    axes.plot(steps, scores, marker="o", markersize=3)
    axes.fill_between(steps, low, high, alpha=0.25, label="± standard error over episodes")
    axes.axhline(scores[0], color="grey", linestyle="--", linewidth=1, label="after offline pretraining")
    axes.set(xlabel="environment steps", ylabel=evaluations[-1]["unit"].replace(" (", "\n("), title=title)
    axes.legend(frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)
