"""Generator quality as a nested dictionary: each number with its floor, a copier's, and given two labels its ceiling.

report = evaluate({"offline": rows}, {"offline": RealData(held_out, training)})
report["labels"]["offline"]["auc"]  # {"generated": 0.71, "floor": 0.53, "copier": 0.99}
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality.measures import HELD_OUT_METRICS, TRAINING_METRICS, Measure, Reference
from o2o_diffusion.quality.real import MIN_ROWS, RealData, copies, draw
from o2o_diffusion.quality.verdict import Verdict
from o2o_diffusion.schedule import Gate
from o2o_diffusion.types import Transitions, TransitionSpec

if TYPE_CHECKING:
    from o2o_diffusion.quality.dynamics import Simulator  # brings environments

LABELS, LIMITS = ("offline", "online"), Gate()


def evaluate(
    generated: Mapping[str, Transitions],
    real: Mapping[str, RealData],
    *,
    rows: int = 10_000,
    simulators: "Mapping[str, Simulator] | None" = None,
    agent: Agent | None = None,
    seed: int = 0,
    gate: Gate = LIMITS,
) -> dict[str, Any]:
    """Run `compare` for each label ("offline", "online") of `generated`; the ceiling is the other label, if in `real`.

    `simulators` has the world of each label, if known: under a shift of dynamics they differ.
    Returns {"verdict": words, "labels": {label: numbers}, "seconds": {measure: seconds}}; the verdict is by the limits
    of `gate`. Raises InputError if fewer than 100 rows of a kind are available.
    """
    seconds: dict[str, float] = {}
    options: dict[str, Any] = {"rows": rows, "agent": agent, "seed": seed, "seconds": seconds}
    labels, simulators = {}, simulators or {}
    for label, candidate in generated.items():
        check_enough(candidate, real[label])
        other = next((real[name] for name in LABELS if name != label and name in real), None)
        own = {"is_online": label == "online", "simulator": simulators.get(label), "copier": True}
        labels[label] = compare(candidate, real[label], other, **own, **options)
    counted = sum(map(len, generated.values()))
    return {"verdict": Verdict.of(labels, gate, counted, counted).summary, "labels": labels, "seconds": seconds}


def compare(
    generated: Transitions,
    real: RealData,
    other: RealData | None = None,
    *,
    is_online: bool = True,
    rows: int = 10_000,
    asked: int | None = None,
    copier: bool = False,
    simulator: "Simulator | None" = None,
    agent: Agent | None = None,
    seed: int = 0,
    measures: Sequence[Measure] = (*HELD_OUT_METRICS, *TRAINING_METRICS),
    seconds: dict[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure generated rows of one label; returns {name: {"generated": .., "floor": .., "copier": .., "ceiling": ..}}.

    Draws at most `rows` rows of each kind. The floor applies the measure to other real rows of the label, the ceiling
    to real rows of the `other` label; the copier is training rows with a little noise. Non-finite rows are counted as
    `dropped`, with those missing of `asked` rows, and left out. Dynamics are checked in `simulator` (None: against a
    learned model), actions against the policy of `agent` (None: skipped); `seconds` accumulates the time of each
    measure.
    """
    spec = TransitionSpec(generated.observations.shape[1], generated.actions.shape[1])
    finite = spec.flatten(generated).isfinite().all(1)
    held_out, others = draw(real.held_out, rows, seed), draw(other.held_out, rows, seed) if other else None
    reference = Reference(held_out, real.training, real.limits, others, is_online, spec, simulator, agent, seed)
    training = draw(real.training, rows, seed + 1)
    candidates = {"generated": draw(generated[finite], rows, seed), "floor": training}
    if copier:
        candidates["copier"] = copies(training, seed)
    if other is not None:
        candidates["ceiling"] = draw(other.training, rows, seed + 1)
    numbers: dict[str, dict[str, Any]] = {"rows": {kind: len(candidate) for kind, candidate in candidates.items()}}
    numbers["dropped"] = {"generated": 1 - int(finite.sum()) / (asked or len(generated)), "floor": 0.0}
    for measure in measures:
        start = time.perf_counter()
        for kind, candidate in candidates.items():
            fitting = held_out if kind == "floor" and measure in TRAINING_METRICS else candidate
            for name, value in measure(fitting, reference).items():
                numbers.setdefault(name, {})[kind] = value
        if seconds is not None:
            seconds[measure.__name__] = seconds.get(measure.__name__, 0.0) + time.perf_counter() - start
    return numbers


def check_enough(generated: Transitions, real: RealData) -> None:
    """Raise InputError if there are too few rows of a kind to compare."""
    sizes = {"generated": len(generated), "held-out": len(real.held_out), "training": len(real.training)}
    kind = min(sizes, key=lambda name: sizes[name])
    if sizes[kind] < MIN_ROWS:
        raise InputError(f"{sizes[kind]} {kind} rows are too few to compare; at least {MIN_ROWS} are needed")
