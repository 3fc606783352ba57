"""Generator quality as a nested dictionary: each number with its floor and, given two labels, its ceiling.

report = evaluate({"offline": rows}, {"offline": RealData(held_out, training)})
report["labels"]["offline"]["auc"]  # {"generated": 0.71, "floor": 0.53}
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality.dynamics import Simulator
from o2o_diffusion.quality.measures import HELD_OUT_METRICS, TRAINING_METRICS, Measure, Reference
from o2o_diffusion.quality.real import RealData, draw
from o2o_diffusion.types import Transitions, TransitionSpec

LABELS = ("offline", "online")
MIN_ROWS = 100
"""Minimum number of rows of each kind."""


def evaluate(
    generated: Mapping[str, Transitions],
    real: Mapping[str, RealData],
    *,
    rows: int = 10_000,
    simulators: Mapping[str, Simulator] | None = None,
    agent: Agent | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run `compare` for each label ("offline", "online") of `generated`; the ceiling is the other label, if in `real`.

    `simulators` has the world of each label, if known: under a shift of dynamics they differ.
    Returns {"labels": {label: numbers}, "seconds": {measure: seconds}}.
    """
    seconds: dict[str, float] = {}
    options: dict[str, Any] = {"rows": rows, "agent": agent, "seed": seed, "seconds": seconds}
    labels, simulators = {}, simulators or {}
    for label, candidate in generated.items():
        other = next((real[name] for name in LABELS if name != label and name in real), None)
        world = {"is_online": label == "online", "simulator": simulators.get(label)}
        labels[label] = compare(candidate, real[label], other, **world, **options)
    return {"labels": labels, "seconds": seconds}


def compare(
    generated: Transitions,
    real: RealData,
    other: RealData | None = None,
    *,
    is_online: bool = True,
    rows: int = 10_000,
    simulator: Simulator | None = None,
    agent: Agent | None = None,
    seed: int = 0,
    measures: Sequence[Measure] = (*HELD_OUT_METRICS, *TRAINING_METRICS),
    seconds: dict[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure generated rows of one label; returns {name: {"generated": .., "floor": .., "ceiling": ..}}.

    Draws at most `rows` rows of each kind, equally many generated and real ones. The floor applies the measure to other
    real rows of the label, the ceiling to real rows of the `other` label. Non-finite rows are counted and left out.
    Dynamics are checked in `simulator` (None: against a learned model), actions against the policy of `agent` (None:
    skipped); `seconds` accumulates the time of each measure. Raises InputError if fewer than 100 rows are available.
    """
    spec = TransitionSpec(generated.observations.shape[1], generated.actions.shape[1])
    finite = spec.flatten(generated).isfinite().all(1)
    size = _size({"generated": int(finite.sum()), "held-out": len(real.held_out), "training": len(real.training)}, rows)
    held_out, others = draw(real.held_out, size, seed), draw(other.held_out, size, seed) if other else None
    reference = Reference(held_out, real.training, others, is_online, spec, simulator, agent, seed)
    candidates = {"generated": draw(generated[finite], size, seed), "floor": draw(real.training, size, seed + 1)}
    if other is not None:
        candidates["ceiling"] = draw(other.training, size, seed + 1)
    numbers: dict[str, dict[str, Any]] = {"rows": {kind: len(candidate) for kind, candidate in candidates.items()}}
    numbers["non_finite"] = {"generated": 1 - float(finite.float().mean()), "floor": 0.0}
    for measure in measures:
        start = time.perf_counter()
        for kind, candidate in candidates.items():
            fitting = held_out if kind == "floor" and measure in TRAINING_METRICS else candidate
            for name, value in measure(fitting, reference).items():
                numbers.setdefault(name, {})[kind] = value
        if seconds is not None:
            seconds[measure.__name__] = seconds.get(measure.__name__, 0.0) + time.perf_counter() - start
    return numbers


def _size(available: Mapping[str, int], wanted: int) -> int:
    """Number of rows of each kind to compare; raises InputError if there are too few."""
    kind = min(available, key=lambda name: available[name])
    size = min(wanted, available[kind])
    if size < MIN_ROWS:
        raise InputError(f"{size} {kind} rows are too few to compare; at least {MIN_ROWS} are needed")
    return size
