"""One-page figure: the verdict and its reasons, the numbers with controls, then marginals, projections, dynamics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from o2o_diffusion.quality.distances import standardize
from o2o_diffusion.quality.real import RealData, draw
from o2o_diffusion.quality.table import KINDS, MEANINGS, shown
from o2o_diffusion.types import Transitions, TransitionSpec

SHOWN = (
    *("auc", "actions", "outcomes", "outside_range", "at_limits", "duplicates", "missed_endings", "terminations"),
    *("novelty", "coverage", "marginal", "sliced_wasserstein_2", "dynamics_error", "dynamics_ratio"),
)
"""Numbers in the table, if they were measured."""
HEADS = {"floor": "real", "ceiling": "other label"}
REAL, GENERATED, OTHER = "0.45", "tab:orange", "tab:blue"
COLUMNS = 4
"""Marginal plots per row; there are two rows."""
POINTS = 2_000
"""Maximum number of points of each kind in a projection, to limit overlap."""
SMALLEST = 1e-6
"""Minimum error to plot; excludes the error of a simulator against itself."""


def save_page(
    report: Mapping[str, Any],
    generated: Mapping[str, Transitions],
    real: Mapping[str, RealData],
    title: str,
    path: Path,
) -> None:
    """Plot a report of `evaluate` and its rows, one column per label, to the PNG file `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 * len(generated), 17), layout="constrained")
    FigureCanvasAgg(figure)  # renders without a display
    head, body = figure.subfigures(2, 1, height_ratios=(1, 11), squeeze=False)[:, 0]
    _draw_verdict(head, title, report["verdict"])
    parts = body.subfigures(1, len(generated), wspace=0.06, squeeze=False)[0]
    for part, (label, rows) in zip(parts, generated.items(), strict=True):
        numbers, held_out = report["labels"][label], {name: pools.held_out for name, pools in real.items()}
        part.suptitle(f"{label} label", fontsize=13)
        table, upper, middle, lower = part.subfigures(4, 1, height_ratios=(1.1, 1.3, 1, 0.8))
        _draw_numbers(table, numbers)
        _draw_marginals(upper, numbers["marginals"]["generated"], rows, held_out[label])
        _draw_projections(middle, label, rows, held_out)
        _draw_dynamics(lower, numbers.get("dynamics", {}))
    figure.savefig(path, dpi=100)


def column_names(spec: TransitionSpec) -> list[str]:
    """Short names of a flat row's columns: s0, s1, .., a0, .., reward, s'0, .., termination."""
    letters = {"observations": "s", "actions": "a", "next_observations": "s'"}
    names = []
    for field, where in spec.columns.items():
        width = where.stop - where.start
        names += [f"{letters[field]}{k}" for k in range(width)] if field in letters else [field.removesuffix("s")]
    return names


def _spec(batch: Transitions) -> TransitionSpec:
    return TransitionSpec(batch.observations.shape[1], batch.actions.shape[1])


def _draw_verdict(figure: Any, title: str, verdict: str) -> None:
    """Write the decision in large letters, and its reasons below it."""
    decision, *reasons = verdict.splitlines()
    figure.text(0.01, 0.8, f"{title}: {decision}", fontsize=16, weight="bold", va="center")
    for line, reason in enumerate(reasons):
        figure.text(0.015, 0.5 - 0.22 * line, reason, fontsize=12, va="center")


def _draw_numbers(figure: Any, numbers: Mapping[str, Any]) -> None:
    """Write the most important numbers in a table, with those of real rows and of a copier beside them."""
    axis = figure.subplots()
    axis.axis("off")
    kinds = [kind for kind in KINDS if kind in numbers["rows"]]
    rows = {MEANINGS[name][0]: [shown(numbers[name].get(kind)) for kind in kinds] for name in SHOWN if name in numbers}
    heads = [HEADS.get(kind, kind) for kind in kinds]
    options: Any = {"loc": "center", "cellLoc": "right", "colWidths": [0.14] * len(kinds)}
    table = axis.table(list(rows.values()), rowLabels=list(rows), colLabels=heads, **options)
    table.auto_set_font_size(False)
    table.set_fontsize(11)
    for cell in table.get_celld().values():
        cell.set_linewidth(0)


def _draw_marginals(figure: Any, similarity: list[float], generated: Transitions, real: Transitions) -> None:
    """Plot histograms of the reward and of the columns of s and a that differ most."""
    spec = _spec(generated)
    names, reward = column_names(spec), spec.columns["rewards"].start
    worst = sorted(range(reward), key=lambda column: similarity[column])[: 2 * COLUMNS - 1]
    axes = figure.subplots(2, COLUMNS).flat
    for axis, column in zip(axes, [reward, *worst], strict=False):
        values = [spec.flatten(batch)[:, column].numpy() for batch in (real, generated)]
        low, high = np.quantile(np.concatenate(values), [0.002, 0.998])
        edges = np.linspace(low, max(high, low + 1e-6), 41)
        axis.hist(values[0].clip(low, high), edges, density=True, color=REAL, alpha=0.6)
        axis.hist(values[1].clip(low, high), edges, density=True, color=GENERATED, histtype="step", linewidth=1.6)
        axis.set_title(f"{names[column]}, 1 - KS = {similarity[column]:.2f}", fontsize=10)
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
    for axis in axes:  # unused axes of tasks with few columns
        axis.axis("off")
    figure.suptitle("grey: real, held out; orange: generated; the reward, and the columns of s and a that differ most")


def _draw_projections(figure: Any, label: str, generated: Transitions, held_out: Mapping[str, Transitions]) -> None:
    """Plot real rows, generated rows and rows of the other label, on the real rows' principal components."""
    from sklearn.decomposition import PCA

    spec = _spec(generated)
    known = spec.flatten(held_out[label])
    plane = PCA(2, random_state=0).fit(standardize(known, known).numpy())
    shown = {f"real, {label}": (held_out[label], REAL), f"generated, {label}": (generated, GENERATED)}
    shown |= {f"real, {name}": (batch, OTHER) for name, batch in held_out.items() if name != label}
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True)
    for axis, (name, (batch, color)) in zip(axes, shown.items(), strict=True):
        points = plane.transform(standardize(spec.flatten(draw(batch, POINTS, 0)), known).numpy())
        axis.scatter(*points.T, s=5, color=color, alpha=0.4, linewidths=0)
        axis.set_title(name, fontsize=10)
    low, high = np.quantile(plane.transform(standardize(known, known).numpy()), [0.001, 0.999], axis=0)
    margin = 0.25 * (high - low)  # limits from real rows, so that outliers don't shrink the rest
    low, high = low - margin, high + margin
    axes[0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    shares = 100 * plane.explained_variance_ratio_
    figure.suptitle(
        f"principal components 1 and 2 of the real rows ({shares[0]:.0f} % and {shares[1]:.0f} % of variance)"
    )


def _draw_dynamics(figure: Any, errors: Mapping[str, list[float]]) -> None:
    """Plot the squared error of each dimension of the next observation."""
    axis = figure.subplots()
    axis.set_title("error of the generated next observation, by dimension")
    if "generated" not in errors:
        axis.text(0.5, 0.5, "not computed: no row could be simulated", ha="center", transform=axis.transAxes)
        return
    for kind, width, color in (("generated", 0.8, GENERATED), ("floor", 0.4, REAL)):
        values = np.array(errors[kind])
        if values.max() > SMALLEST:
            name = "generated" if kind == "generated" else "real (the learned model's own error)"
            axis.bar(range(len(values)), values.clip(SMALLEST), width, color=color, label=name)
    axis.axhline(1.0, color="black", linestyle="--", linewidth=1, label="as large as the change in a step")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(low, 1.5 * high * (high / low) ** 0.2)  # room for the legend
    axis.set(xlabel="dimension of s'", ylabel="mean squared error / change")
    axis.legend(fontsize=9, ncols=3, loc="upper center", frameon=False)
