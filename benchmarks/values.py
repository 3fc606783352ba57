"""Convergence of a learner's values: correlation of V with the subsequent return, on held-out episodes.

    python benchmarks/values.py <hopper/medium-v0> --taus 0.005 0.05 --updates 10000 20000

Trains IQL with each `learner.tau` on four fifths of a dataset's episodes; on the rest (every fifth), compares V at
selected steps with the discounted return-to-go. Prints a table and writes docs/results/values.json.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.schedule import Budget
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Episode

ROOT = Path(__file__).parent.parent


def correlations(learner: IQL, episodes: Sequence[Episode], returns: list[np.ndarray], steps: list[int]) -> list[float]:
    """Correlation of V and the return over episodes, at each of `steps`."""
    found = []
    for step in steps:
        states = np.stack([episode.observations[step] for episode in episodes])
        with torch.no_grad():
            values = learner.value(torch.as_tensor(states, dtype=torch.float32, device=learner.device)).cpu().numpy()
        found.append(round(float(np.corrcoef(values, [following[step] for following in returns])[0, 1]), 2))
    return found


def course(dataset: str, tau: float, updates: list[int], steps: list[int]) -> Iterator[dict[str, Any]]:
    """Train with `tau`; yields the correlations after each number of `updates`."""
    given = ["learner=iql", f"learner.tau={tau}", "generator=none", f"task.dataset={dataset}", "threads=1"]
    with TemporaryDirectory() as folder:
        run = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*given, f"output={folder}/run"]))
    replay, learner, episodes = run.loop.replay, run.loop.learner, load_dataset(dataset).episodes
    assert isinstance(learner, IQL)
    held_out = [episode for episode in episodes[::5] if len(episode) > max(steps)]
    if len(held_out) < 2:
        raise SystemExit(
            f"{dataset}: {len(held_out)} of every fifth episode are longer than {max(steps)} steps, expected 2"
        )
    returns = [episode.returns(replay.transform, replay.discount) for episode in held_out]
    trained = torch.tensor([i % 5 > 0 for i, e in enumerate(episodes) for _ in range(len(e))]).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    phase = learner.phases(Budget(max(updates), 0))[0]
    learner.begin_phase(phase, replay)
    for update in range(1, max(updates) + 1):
        rows = trained[torch.randint(len(trained), (phase.batch_size,), generator=generator)]
        learner.update(replay.scaled(replay.offline[rows]))
        if update in updates:
            found = correlations(learner, held_out, returns, steps)
            print(f"| {update:,} | {tau} | " + " | ".join(map(str, found)) + " |", flush=True)
            yield {"updates": update, "tau": tau, "correlations": found}


def main() -> None:
    """Train with each tau, print the correlations and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="Minari id or folder")
    parser.add_argument("--taus", nargs="+", type=float, default=[0.005, 0.05])
    parser.add_argument("--updates", nargs="+", type=int, default=[10_000, 20_000])
    parser.add_argument("--steps", nargs="+", type=int, default=[150, 200, 240, 260, 280])
    arguments = parser.parse_args()
    rows = [row for tau in arguments.taus for row in course(arguments.dataset, tau, arguments.updates, arguments.steps)]
    named = "<" + "/".join(Path(arguments.dataset).parts[-2:]) + ">"
    command = "python benchmarks/values.py " + shlex.join(sys.argv[1:]).replace(arguments.dataset, named)
    path = ROOT / "docs" / "results" / "values.json"
    path.write_text(json.dumps({"command": command, "steps": arguments.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
