"""Compare the outcome models of `onpolicy`: error, calibration and speed, against the simulator.

    python benchmarks/outcomes.py hopper/medium-v0=hopper/mixed-v0 --data ../shared/data/minari/local

Each argument names the offline and the online dataset, folders under `--data`. A model is trained on `--offline-rows`
and `--online-rows` rows, for `--updates` updates, and asked for the outcomes of 2,000 rows of other online episodes:
with their own actions, and with actions moved by a standard deviation of 0.3, as a policy's would be. Errors of s' are
squared and divided by the mean squared change of one step; errors of rewards are divided by their variance. Coverage is
the share of true values within the central 90% of 32 draws (of the ensemble: with its noise), over the columns that
vary. Results are written to docs/results/outcomes.json, and measured again only if the command differs.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.generators.onpolicy import OnPolicy, columns
from o2o_diffusion.quality.dynamics import Simulator, compare_next
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Episode, Source, Transitions

ROOT = Path(__file__).parent.parent
ROWS, DRAWS, MOVED = 2_000, 32, 0.3
MODELS: dict[str, dict[str, Any]] = {
    "ensemble, s'": {},
    "ensemble, s' - s": {"differences": True},
    "ensemble, s' - s, 256 x 3": {"differences": True, "width": 256, "depth": 3},
    "denoiser, s', 8 steps": {"model": "denoiser", "depth": 3},
    "denoiser, s' - s, 8 steps": {"model": "denoiser", "depth": 3, "differences": True},
    "denoiser, s' - s, 16 steps": {
        "model": "denoiser", "depth": 3, "differences": True, "sampling": Sampling(num_steps=16, restarts=0)
    },
}  # fmt: skip


def rows_of(episodes: Sequence[Episode], size: int) -> Transitions:
    """The first `size` rows of the episodes, taken in a random order."""
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0)).tolist()
    return Transitions.cat([episodes[number].transitions() for number in order])[:size]


def fill(data: Path, pair: str, sizes: tuple[int, int]) -> tuple[Replay, Transitions, Simulator]:
    """The replay, held-out rows of the online label with an exact state, and the simulator."""
    offline, online = (load_dataset(str(data / name)) for name in pair.split("="))
    replay = Replay(offline.spec, dict(zip(Source, sizes, strict=False)))
    replay.offline.append(rows_of(offline.episodes, sizes[0]))
    replay.online.append(rows_of(online.episodes[1::2], sizes[1]))
    held_out = rows_of(online.episodes[::2], 2 * ROWS)
    simulator = Simulator.find(offline.environment, held_out)
    if simulator is None:
        raise SystemExit(f"{pair}: the simulator can't be set to its observations")
    return replay, held_out[simulator.known(held_out)][:ROWS], simulator


def errors(made: Transitions, truth: Transitions, real: Transitions) -> dict[str, float]:
    """Errors of outcomes, and recall and false alarms of terminations."""
    following = compare_next(made, truth, real)
    reward = (made.rewards - truth.rewards).square().mean() / real.rewards.var()
    ended = truth.terminations > 0.5
    found = {"mean": following["mean"], "median": following["median"], "reward": float(reward)}
    found |= {"recall": float(made.terminations[ended].mean())} if ended.any() else {}
    found |= {"false_endings": float(made.terminations[~ended].mean())}
    return {name: round(value, 5) for name, value in found.items()}


def coverage(generator: OnPolicy, batch: Transitions, truth: Tensor) -> float:
    """Share of true values within the central 90% of the model's draws."""
    drawn = torch.stack([columns(generator.rows(batch, NoAgent(), generator.shared_rng)) for _ in range(DRAWS)])
    low, high = drawn.quantile(torch.tensor([0.05, 0.95]), dim=0)
    varies = truth.std(0) > 1e-6
    return round(float(((truth >= low) & (truth <= high))[:, varies].float().mean()), 3)


def measure(name: str, replay: Replay, held_out: Transitions, simulator: Simulator, updates: int) -> dict[str, Any]:
    """Train one model and measure it."""
    config = OnPolicy.Config(actions="data", updates=updates, **MODELS[name])
    generator = OnPolicy(config, replay.spec, seed=0)
    start = time.process_time()
    generator.begin_refresh(replay, NoAgent())
    with torch.enable_grad():
        for _ in range(updates):
            generator.update(replay, NoAgent())
    found: dict[str, Any] = {"model": name, "seconds": round(time.process_time() - start, 1)}
    noisy = OnPolicy(replace(config, noisy=True), replay.spec, seed=0)
    noisy.load_state_dict(generator.state_dict())
    noise = MOVED * torch.randn(held_out.actions.shape, generator=torch.Generator().manual_seed(1))
    asked = {"own": held_out, "moved": held_out.where(actions=(held_out.actions + noise).clamp(-1, 1))}
    for kind, batch in asked.items():
        truth = simulator(batch)
        found[kind] = errors(generator.rows(batch, NoAgent(), generator.shared_rng), truth, held_out)
        found[kind]["coverage"] = coverage(noisy, batch, columns(truth))
    batch, start = held_out[:256], time.process_time()
    for _ in range(50):
        generator.rows(batch, NoAgent(), generator.shared_rng)
    found["rows_per_second"] = round(50 * 256 / (time.process_time() - start), -2)
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """Measure every model on every pair of datasets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", help="OFFLINE=ONLINE")
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--offline-rows", type=int, default=10_000)
    parser.add_argument("--online-rows", type=int, default=2_000)
    parser.add_argument("--updates", type=int, default=3_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    path = ROOT / "docs" / "results" / "outcomes.json"
    command = "python benchmarks/outcomes.py " + shlex.join(sys.argv[1:]).replace(str(arguments.data), "<folder>")
    old = json.loads(path.read_text()) if path.exists() else {}
    cells = old["cells"] if old.get("command") == command else []
    for pair in arguments.pairs:
        inputs = fill(arguments.data, pair, (arguments.offline_rows, arguments.online_rows))
        done = {cell["model"] for cell in cells if cell["data"] == pair}
        for name in (name for name in MODELS if name not in done):
            cells.append({"data": pair, **measure(name, *inputs, arguments.updates)})
            path.write_text(json.dumps({"command": command, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
