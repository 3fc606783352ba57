"""The page of a study: Markdown tables with intervals, and the figures."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from o2o_diffusion.storage import save_text
from o2o_diffusion.studies.figures import save_curves, save_differences
from o2o_diffusion.studies.results import METRICS, Results, results_of
from o2o_diffusion.studies.rows import read_rows
from o2o_diffusion.studies.screening import dropped, shown_drops, shown_oracles
from o2o_diffusion.studies.statistics import Estimate, holm, improvement, interquartile_mean, mean, paired_p
from o2o_diffusion.studies.study import Study

AREA = "area_under_curve"
COLUMNS = ["runs", "refreshes, refused", *METRICS.values(), "interquartile mean of the area"]
COLUMNS += ["difference in area", "gain in area", "difference at the end", "probability of improvement", "p"]
EXPLANATION = """The area under the curve is the mean score over a run's evaluations, the worst score the minimum over
those after the switch to online. In brackets are 95% bootstrap intervals, with seeds resampled within each task.
Differences are to `{baseline}`, paired by seed and kind of processor. The probability of improvement is that of a run
to score above one of `{baseline}` in area under the curve. p is of a sign-permutation test of the differences in area,
with Holm's correction over the table."""


def save_study(study: Study, rows_file: Path) -> None:
    """Write a study's page beside its file of rows, if there are rows; raises OSError."""
    rows = read_rows(rows_file)
    results = results_of(study, rows)
    if not results.rows:
        return
    page = rows_file.with_suffix(".md")
    command = f"python scripts/study.py study={study.name} data=<folder>"
    notes = shown_oracles(study, results), shown_drops(study, dropped(study, rows))
    save_page(results, study.name, command, page, *notes)
    print(f"tables and figures: {page}")


def save_page(results: Results, title: str, command: str, path: Path, *notes: str) -> None:
    """Write the tables to the Markdown file `path` and the figures beside it; raises OSError."""
    parts = [f"# {title}", f"Made by `{command}`.", EXPLANATION.format(baseline=results.baseline), provenance(results)]
    parts += filter(None, notes)
    if len(results.groups) > 1:
        parts += ["## All tasks", table(results, results.groups)]
    for group in results.groups:
        parts += [f"## {group}", table(results, [group])]
    for name, save in (("curves", save_curves), ("differences", save_differences)):
        picture = path.with_name(f"{path.stem}-{name}.png")
        save(results, picture)
        parts.append(f"![{name}]({picture.name})")
    save_text(path, "\n\n".join(parts) + "\n")


def provenance(results: Results) -> str:
    """Processors and time of the rows, and how many are left out, in one paragraph."""
    hours = sum(row["seconds"]["total"] for row in results.rows) / 3600
    where = "; ".join(f"{count} runs on {name}" for name, count in results.processors.items())
    old = f" {results.num_old} rows of older versions are left out." if results.num_old else ""
    return f"{where}; {hours:.1f} core-hours.{old}"


def table(results: Results, groups: Sequence[str]) -> str:
    """Markdown table with one line per variant that has runs in all of `groups`."""
    variants = [name for name in results.variants if all(results.runs(name, group) for group in groups)]
    differences = {name: [results.differences(name, group, AREA) for group in groups] for name in variants}
    paired = {name: parts for name, parts in differences.items() if name != results.baseline and all(parts)}
    p_values = holm({name: paired_p([*itertools.chain(*parts)]) for name, parts in paired.items()})
    head = [results.compare, *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in variants:
        cells = [name, *scores(results, name, groups)]
        cells += [*comparison(results, name, groups), f"{p_values[name]:.2g}"] if name in paired else ["-"] * 5
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scores(results: Results, variant: str, groups: Sequence[str]) -> list[str]:
    """Numbers of runs and refreshes, mean of every metric, interquartile mean of the area."""
    samples = {metric: [results.scores(variant, group, metric) for group in groups] for metric in METRICS}
    means = [shown(mean(parts)) for parts in samples.values()]
    runs = [run for group in groups for run in results.runs(variant, group)]
    refreshes = [sum(run[name] for run in runs) for name in ("refreshes", "refused_refreshes")]
    return [str(len(runs)), "{}, {}".format(*refreshes), *means, shown(interquartile_mean(samples[AREA]))]


def comparison(results: Results, variant: str, groups: Sequence[str]) -> list[str]:
    """Paired difference to the baseline in area, also in percent, and at the end; probability of improvement."""
    pairs = [results.pairs(variant, group) for group in groups]
    ours, theirs = ([[pair[side][AREA] for pair in part] for part in pairs] for side in (0, 1))
    area, final = (
        mean([results.differences(variant, group, name) for group in groups]) for name in (AREA, "final_score")
    )
    base = mean(theirs).value
    percent = f"{area.value / base:+.0%}" if base > 0 else "-"
    return [shown(area, "+.1f"), percent, shown(final, "+.1f"), shown(improvement(ours, theirs), ".2f")]


def shown(estimate: Estimate, form: str = ".1f") -> str:
    """An estimate as "1.2 [0.9, 1.5]"; without an interval if there is none."""
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.value:{form}}{interval}"
