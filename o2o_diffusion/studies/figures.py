"""Figures of a study: learning curves, and differences to the baseline, each with 95% intervals."""

from pathlib import Path
from typing import Any

import numpy as np

from o2o_diffusion.storage import atomic_file
from o2o_diffusion.studies.results import METRICS, Results, Row
from o2o_diffusion.studies.statistics import mean

DIFFERENCES = ("area_under_curve", "final_score")
COLUMNS = 3
"""Maximum number of panels side by side."""


def save_curves(results: Results, path: Path) -> None:
    """Plot the mean score over seeds against environment steps, one panel per group; raises OSError."""
    groups = results.groups
    figure, panels = _figure(len(groups), height=4)
    for axes, group in zip(panels, groups, strict=False):
        for variant in results.variants:
            if runs := results.runs(variant, group):
                _draw_curve(axes, runs, variant)
        axes.set(title=group, xlabel="environment steps", ylabel=results.rows[0]["score"])
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def save_differences(results: Results, path: Path) -> None:
    """Plot the mean paired difference to the baseline over all groups, one panel per metric; raises OSError."""
    figure, panels = _figure(len(DIFFERENCES), height=1.2 + 0.3 * len(results.variants))
    for axes, metric in zip(panels, DIFFERENCES, strict=True):
        for place, variant in enumerate(results.variants[1:]):
            samples = [results.differences(variant, group, metric) for group in results.groups]
            if samples := [sample for sample in samples if sample]:
                found = mean(samples)
                axes.plot([found.low, found.high], [-place, -place], color="tab:blue", linewidth=2)
                axes.plot(found.value, -place, "o", color="tab:blue")
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_yticks(-np.arange(len(results.variants) - 1), results.variants[1:])
        axes.margins(y=0.5 / len(results.variants))
        axes.set(xlabel=f"{METRICS[metric]}: difference to '{results.baseline}'")
    _save(figure, path)


def _draw_curve(axes: Any, runs: list[Row], label: str) -> None:
    steps = [point["env_steps"] for point in runs[0]["curve"]]
    columns = zip(*([point["score"] for point in run["curve"]] for run in runs), strict=False)
    found = [mean([column]) for column in columns]
    steps = steps[: len(found)]
    (line,) = axes.plot(steps, [estimate.value for estimate in found], label=f"{label} ({len(runs)})", linewidth=1.5)
    low, high = [estimate.low for estimate in found], [estimate.high for estimate in found]
    axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color())


def _figure(num_panels: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(num_panels, COLUMNS)
    lines = -(-num_panels // columns)
    figure = Figure(figsize=(6 * columns, height * lines), layout="constrained")
    FigureCanvasAgg(figure)  # renders without a display
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)[:num_panels]


def _save(figure: Any, path: Path) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
