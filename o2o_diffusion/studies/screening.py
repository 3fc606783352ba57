"""Screening: after a few seeds, drop the cells that can't show a gain."""

from collections.abc import Iterable, Mapping
from statistics import mean

from o2o_diffusion.studies.results import Results, Row, results_of
from o2o_diffusion.studies.study import Cell, Study

METRIC = "area_under_curve"
Gains = dict[tuple[str, str], float]
"""Mean gain over the baseline by variant and group."""


def is_screening(study: Study, cell: Cell) -> bool:
    """Whether a cell runs before the screening decides."""
    groups = list(dict.fromkeys(group for _, group in study.variants_and_groups()))
    screened = groups[: study.config.screen.groups or None]
    return cell.seed < study.config.screen.seeds and cell.group(study.config.compare) in screened


def dropped(study: Study, rows: Iterable[Row]) -> Gains:
    """The variants and groups to drop, by the rows of the first seeds, with the gain that was too small.

    With oracles, the best gain of an oracle decides for all of its group. Without, a variant's mean gain over the
    groups decides for it everywhere. Whatever has no pair of runs yet stays, and so does the baseline.
    """
    gains = mean_gains(results_of(study, rows, seeds=study.config.screen.seeds))
    deciding = {place: _deciding(study, gains, *place) for place in study.variants_and_groups()}
    return {place: gain for place, gain in deciding.items() if gain is not None and gain < study.config.screen.gain}


def mean_gains(results: Results) -> Gains:
    """The mean paired difference to the baseline of every variant and group that has pairs."""
    places = [(variant, group) for variant in results.variants for group in results.groups]
    differences = {place: results.differences(*place, METRIC) for place in places}
    return {place: mean(found) for place, found in differences.items() if found}


def _deciding(study: Study, gains: Mapping[tuple[str, str], float], variant: str, group: str) -> float | None:
    """The gain that decides whether a variant stays in a group; None if it stays anyway."""
    if oracles := study.config.screen.oracles:
        return max((gains[oracle, group] for oracle in oracles if (oracle, group) in gains), default=None)
    own = [gain for (name, _), gain in gains.items() if name == variant]
    return mean(own) if own and variant != study.config.baseline else None


def shown_drops(study: Study, drops: Gains) -> str:
    """One sentence about what is dropped; empty if nothing is."""
    if not drops:
        return ""
    screen, places = (
        study.config.screen,
        [f"{variant} in {group} ({gain:+.1f})" for (variant, group), gain in drops.items()],
    )
    what = "the best oracle gains" if screen.oracles else "they gain"
    return f"Not run from seed {screen.seeds} on, because {what} less than {screen.gain:g}: {', '.join(places)}."


def shown_oracles(study: Study, results: Results) -> str:
    """One sentence about the best oracle of each group; empty without oracles."""
    screen, gains = study.config.screen, mean_gains(results)
    lines = []
    for group in results.groups:
        known = {gains[oracle, group]: oracle for oracle in screen.oracles if (oracle, group) in gains}
        if known:
            gain, says = max(known), "" if max(known) >= screen.gain else ", which says nothing about generators"
            lines.append(f"{group}: {known[gain]} {gain:+.1f}{says}")
    return f"Gain of the best oracle in area: {'; '.join(lines)}." if lines else ""
