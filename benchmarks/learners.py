"""Updates per second of learners, alone and stacked, beside plain ones of `reference/` and the processor's limit.

    taskset -c 0 python -m benchmarks learners [--widths 64 256] [--sizes hopper ant adroit] [--seeds 5] [--rounds 9]

Turns are interleaved, so that all variants meet the same state of the machine; a turn is measured in processor time of
this process, because other processes may use the core as well. Medians over the rounds. One thread, batch size 256.
The limit is the rate of a large matrix product; an update's products are counted.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference.famo2o import FamO2O
from benchmarks.reference.iql import IQL
from benchmarks.reference.sac import SAC
from o2o_diffusion.learners.stacking import Stack
from o2o_diffusion.settings import CONFIGS, available, compose
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.session import processor, set_matmul
from o2o_diffusion.types import Transitions, TransitionSpec

REFERENCES = {"IQL": IQL, "FamO2O": FamO2O, "SAC": SAC}
SIZES = {"hopper": (11, 3), "ant": (27, 8), "adroit": (45, 24)}
"""Observation and action dimensions."""
BATCH_SIZE, SECONDS = 256, 0.2
Variant = tuple[str, Callable[[], Any]]
"""The precision of matrix products, and an update."""


def make_batch(spec: TransitionSpec, seed: int) -> Transitions:
    """A batch of random rows."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, BATCH_SIZE, spec.observation_dim, generator=generator)
    actions = 2 * torch.rand(BATCH_SIZE, spec.action_dim, generator=generator) - 1
    rewards, discounts = torch.randn(BATCH_SIZE, generator=generator), torch.full((BATCH_SIZE,), 0.99)
    return Transitions.create(states[0], actions, rewards, states[1], torch.zeros(BATCH_SIZE), discounts=discounts)


def build(name: str, spec: TransitionSpec, width: int, seed: int) -> Any:
    """A learner with two hidden layers."""
    overrides = [f"learner={name}", f"learner.hidden=[{width},{width}]"]
    settings = compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides)
    return settings.components["learner"].build(spec, seed=seed, device="cpu")


def variants(name: str, spec: TransitionSpec, width: int, seeds: int, matmul: str) -> dict[str, Variant]:
    """The plain learner of the nearest kind, ours, and several seeds of ours stacked."""
    batches = [make_batch(spec, seed) for seed in range(seeds)]
    own, stack = build(name, spec, width, 0), Stack([build(name, spec, width, seed) for seed in range(seeds)])
    kinds = [REFERENCES[cls.__name__] for cls in type(own).__mro__ if cls.__name__ in REFERENCES]
    plain = [*kinds, IQL][0](spec.observation_dim, spec.action_dim, width)
    return {
        "reference": ("highest", lambda: plain.update(batches[0])),
        "own": (matmul, lambda: own.update(batches[0])),
        "stacked": (matmul, lambda: stack.update(batches)),
    }


def turn(variant: Variant) -> float:
    """Seconds per update."""
    precision, update = variant
    torch.set_float32_matmul_precision(precision)
    start, count = time.process_time(), 0
    while time.process_time() - start < SECONDS:
        update()
        count += 1
    return (time.process_time() - start) / count


def product_rate(matmul: str) -> float:
    """Floating-point operations per second of a large product."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / statistics.median(turn((matmul, lambda: a @ a)) for _ in range(5))


def measure(name: str, size: str, width: int, seeds: int, rounds: int, matmul: str, limit: float) -> dict[str, Any]:
    """One row of the table."""
    found = variants(name, TransitionSpec(*SIZES[size]), width, seeds, matmul)
    turns = [{kind: turn(variant) for kind, variant in found.items()} for _ in range(rounds + 1)][1:]
    seconds = {kind: statistics.median(each[kind] for each in turns) for kind in found}
    with FlopCounterMode(display=False) as counter:
        found["own"][1]()
    return {
        "learner": name,
        "size": size,
        "width": width,
        **{f"{kind}_per_second": round(1 / value, 1) for kind, value in seconds.items()},
        "ratio": round(statistics.median(each["reference"] / each["own"] for each in turns), 2),
        "stacked_ratio": round(seeds * statistics.median(each["reference"] / each["stacked"] for each in turns), 2),
        "limit": round(counter.get_total_flops() / seconds["own"] / limit, 3),
        "stacked_limit": round(seeds * counter.get_total_flops() / seconds["stacked"] / limit, 3),
    }


def show(result: dict[str, Any]) -> str:
    """Markdown table."""
    seeds = result["seeds"]
    head = ["learner", "size", "width", "plain", "ours", "times plain", "of the limit", f"{seeds} stacked, sum"]
    head += ["times plain", "of the limit"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row in result["rows"]:
        rates = [f"{row[f'{kind}_per_second']:.0f}" for kind in ("reference", "own")]
        own = [*rates, f"{row['ratio']:.2f}", f"{row['limit']:.0%}"]
        stacked = [
            f"{seeds * row['stacked_per_second']:.0f}",
            f"{row['stacked_ratio']:.2f}",
            f"{row['stacked_limit']:.0%}",
        ]
        lines.append(" | ".join([row["learner"], row["size"], str(row["width"]), *own, *stacked]))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", default=["iql", "famo2o", "sac"], choices=available("learner"))
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--seeds", type=int, default=5, help="number of stacked seeds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    matmul = set_matmul("auto")
    limit = product_rate(matmul)
    command = shlex.join(["python", "-m", "benchmarks", "learners", *sys.argv[1:]])
    result: dict[str, Any] = {
        "command": command,
        "processor": processor(),
        "matmul": matmul,
        "gflops": round(limit / 1e9, 1),
    }
    result["seeds"] = arguments.seeds
    result["rows"] = [
        measure(name, size, width, arguments.seeds, arguments.rounds, matmul, limit)
        for width in arguments.widths
        for size in arguments.sizes
        for name in arguments.learners
    ]
    print(f"{result['processor']}, one thread, products '{matmul}' at {result['gflops']} GFLOP/s\n\n{show(result)}")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
