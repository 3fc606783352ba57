"""Check the entries of generated rows: bounds, actions, rewards, endings and dynamics, against held-out episodes.

    python benchmarks/rows.py --version NAME --data hopper=OFFLINE,ONLINE antmaze=OFFLINE ... --vary cfdg synther

Every tenth episode is held out; the labels are as in benchmarks/generators.py. A cell is one generator on one dataset,
trained once and drawn from three times per label; finished cells are kept in runs/benchmarks/rows/, so that the command
goes on where it was interrupted. All cells, of every version found there, are written to docs/results/rows.json and
printed. One cell runs at a time, on one thread; times are CPU seconds of training and of 40,000 rows.
"""

import argparse
import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generators import Cell, Settings, fill, policy
from torch import Tensor

from o2o_diffusion.networks.regression import fitted
from o2o_diffusion.quality.dynamics import Simulator, compare_next
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import compose
from o2o_diffusion.training.session import set_matmul
from o2o_diffusion.types import Source, Transitions

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "runs" / "benchmarks" / "rows"
DRAWS, ROWS, SIMULATED = 3, 5_000, 1_500
AT_GOAL = 0.45
"""Distance to the goal within which the mazes give a reward of 1 and end."""
COLUMNS = {
    "outside": "outside the range", "bound_actions": "actions at +-1", "bound_share": "of the real share",
    "density": "log-density of actions", "dynamics_mean": "dynamics: mean", "dynamics_median": "median",
    "boosted_auc": "boosted AUC", "ending_recall": "endings: recall", "ending_precision": "precision",
    "reward_recall": "r = 1: recall", "reward_precision": "precision", "starts_ended": "starts ended",
}  # fmt: skip


def ended(data: str, states: Tensor) -> Tensor:
    """[B] whether the environment's own rule ends an episode in `states`."""
    if data == "hopper":
        height, angle = states[:, 0], states[:, 1]
        return ~((height > 0.7) & (angle.abs() < 0.2) & (states[:, 1:].abs() < 100).all(1))
    if data in ("pointmaze", "antmaze"):
        position, goal = (states[:, 2:4], states[:, :2]) if data == "pointmaze" else (states[:, :2], states[:, 2:4])
        return (position - goal).norm(dim=1) <= AT_GOAL
    return torch.zeros(len(states), dtype=torch.bool)


def recall_precision(claimed: Tensor, true: Tensor, name: str) -> dict[str, float]:
    """Recall and precision of `claimed` [B] against `true` [B], and the numbers of both; NaN if there are none."""
    both = float((claimed & true).sum())
    recall, precision = (both / float(part.sum()) if part.any() else float("nan") for part in (true, claimed))
    return {f"{name}_recall": recall, f"{name}_precision": precision, f"{name}_claimed": int(claimed.sum()),
            f"{name}_true": int(true.sum())}  # fmt: skip


def rare(data: str, rows: Transitions, training: Transitions) -> dict[str, float]:
    """Recall and precision of endings and, if there are two rewards, of the greater, against the environment's rule."""
    true = ended(data, rows.next_observations)
    numbers = recall_precision(rows.terminations > 0.5, true, "ending")
    is_sparse = len(training.rewards.unique()) == 2
    return numbers | (recall_precision(rows.rewards == 1, true, "reward") if is_sparse else {})


def boosted_auc(first: Tensor, second: Tensor, seed: int) -> float:
    """Cross-validated AUC of gradient-boosted trees that distinguish two sets of rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = np.repeat([1, 0], [len(first), len(second)])
    trees = HistGradientBoostingClassifier(random_state=seed, early_stopping=False)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    scores = cross_val_predict(trees, torch.cat([first, second]).numpy(), labels, cv=folds, method="predict_proba")
    return float(roc_auc_score(labels, np.asarray(scores)[:, 1]))


@dataclass(frozen=True, eq=False)
class Judge:
    """Real rows of one label, and what is fitted to them: `training` were trained on, `held_out` were not."""

    data: str
    training: Transitions
    held_out: Transitions
    flat_training: Tensor
    flat_held_out: Tensor
    density: Any
    simulator: Simulator | None

    def __call__(self, rows: Transitions, flat: Tensor, seed: int) -> dict[str, float]:
        """The numbers of `rows`, also as `flat` rows."""
        low, high = self.flat_training.aminmax(dim=0)
        at_bound = (rows.actions.abs() == 1).float().mean()
        size = min(ROWS, len(flat), len(self.flat_held_out))
        numbers = {
            "outside": float(((flat < low) | (flat > high)).any(1).float().mean()),
            "bound_actions": float(at_bound),
            "bound_states": float(((flat == low) | (flat == high))[:, : rows.observations.shape[1]].float().mean()),
            "density": float(self.density.log_prob(rows.observations, rows.actions).clamp(min=-100).mean()),
            "residual": float(self.density.standardize(rows.observations, rows.actions).square().clamp(max=100).mean()),
            "boosted_auc": boosted_auc(flat[:size], self.flat_held_out[:size], seed),
        }
        numbers |= rare(self.data, rows, self.training)
        numbers["starts_ended"] = float(ended(self.data, rows.observations).float().mean())
        if self.simulator:
            known = rows[self.simulator.known(rows)][:SIMULATED]
            error = compare_next(known, self.simulator(known), self.held_out)
            numbers |= {"dynamics_mean": error["mean"], "dynamics_median": error["median"]}
        return numbers


def judges(cell: Cell) -> tuple[Replay, dict[Source, Judge]]:
    """The training replay, and a judge per label."""
    replay, online, dataset = fill(cell)
    held_out = {Source.ONLINE: online}
    held_out[Source.OFFLINE] = Transitions.cat([e.transitions() for n, e in enumerate(dataset.episodes) if n % 10 == 9])
    simulator = Simulator.find(dataset.environment, held_out[Source.OFFLINE])
    found = {}
    for source, rows in held_out.items():
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
        training = replay.pools[source].all()
        flat = [replay.spec.flatten(part) for part in (training, rows)]
        density = fitted(rows.observations, rows.actions, seed=77, updates=1_500)
        found[source] = Judge(cell.data, training, rows, *flat, density, simulator)
    return replay, found


def run(cell: Cell, version: str) -> None:
    """Train the generator, draw and judge its rows and real ones, and write the results."""
    if cell.path.exists():
        return
    torch.set_num_threads(1)
    set_matmul("auto")
    replay, per_label = judges(cell)
    name, _, overrides = cell.setting.partition(":")
    given = [f"generator={name}", *(f"generator.{part}" for part in overrides.split(",") if part)]
    generator = (
        compose(None, Settings, ("generator",), given).components["generator"].build(replay.spec, seed=cell.seed)
    )
    agent = policy(replay, cell.policy_updates, cell.seed)
    start = time.process_time()
    updates = generator.next_refresh(replay).updates
    generator.begin_refresh(replay, agent)
    for _ in range(updates):
        generator.update(replay, agent)
    trained = time.process_time()
    drawn = {Source.ONLINE: generator.sample(cell.rows, source=Source.GENERATED_ONLINE, replay=replay, agent=agent)}
    end = time.process_time()
    drawn[Source.OFFLINE] = generator.sample(DRAWS * ROWS, source=Source.GENERATED_OFFLINE, replay=replay, agent=agent)
    result: dict[str, Any] = {
        "data": cell.data, "setting": cell.setting, "version": version, "updates": updates,
        "training_seconds": trained - start, "drawing_seconds": end - trained, "labels": {},
    }  # fmt: skip
    with torch.no_grad():
        for source, rows in drawn.items():
            judge = per_label[source]
            flat, size = replay.spec.flatten(rows), len(rows) // DRAWS
            parts = [slice(draw * size, (draw + 1) * size) for draw in range(DRAWS)]
            pick = torch.randperm(len(judge.training), generator=torch.Generator().manual_seed(2))[:ROWS]
            result["labels"][source.label] = {
                "draws": [judge(rows[part], flat[part], seed) for seed, part in enumerate(parts)],
                "all": rare(cell.data, rows, judge.training) | {"rows": len(rows), "held_out": len(judge.held_out)},
                "training": judge(judge.training[pick], judge.flat_training[pick], 0),
                "test": judge(judge.held_out[:ROWS], judge.flat_held_out[:ROWS], 0),
            }
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    cell.path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{cell.path}: done", flush=True)


def line(data: str, label: str, name: str, numbers: dict[str, float], real: dict[str, float], seconds: str) -> str:
    """One row of the table."""
    share = numbers["bound_actions"] / real["bound_actions"] if real["bound_actions"] else float("nan")
    numbers = numbers | {"bound_share": share}
    cells = ["-" if np.isnan(numbers.get(key, np.nan)) else f"{numbers[key]:.3f}" for key in COLUMNS]
    return "| " + " | ".join([data, label, name, *cells, seconds]) + " |"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table: per dataset and label the real rows, then each generator, mean of the draws."""
    lines = [
        "| data | label | rows | " + " | ".join(COLUMNS.values()) + " | seconds |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    seen = set()
    for result, label in product(results, ("offline", "online")):
        data, numbers = result["data"], result["labels"][label]
        real = numbers["training"] | {"outside": numbers["test"]["outside"]}
        if (data, label) not in seen:
            lines.append(line(data, label, "*real*", real, real, ""))
            seen.add((data, label))
        mean = {key: float(np.mean([draw.get(key, np.nan) for draw in numbers["draws"]])) for key in COLUMNS}
        mean |= {key: value for key, value in numbers["all"].items() if key in COLUMNS}
        seconds = f"{result['training_seconds'] + result['drawing_seconds']:.0f}"
        lines.append(line(data, label, f"{result['setting']} ({result['version']})", mean, real, seconds))
    return "\n".join(lines)


def main() -> None:
    """Run the cells one by one, write all results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, help="name of the code's version, part of the cells' names")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=OFFLINE[,ONLINE]")
    parser.add_argument("--vary", nargs="+", required=True, metavar="GENERATOR[:SETTING=VALUE,...]")
    parser.add_argument("--rows", type=int, default=40_000, help="rows of the online label, drawn and timed")
    parser.add_argument("--online-rows", type=int, default=10_000)
    parser.add_argument("--policy-updates", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "rows.json")
    args = parser.parse_args()
    for data, setting in product(args.data, args.vary):
        name, _, folders = data.partition("=")
        offline, _, online = folders.partition(",")
        path = args.folder / f"{args.version}_{name}_{setting.replace(':', '_').replace(',', '_')}.json"
        sizes = (args.rows, args.online_rows, args.policy_updates, 0)
        run(Cell(name, offline, online or None, setting, (), *sizes, path), args.version)
    results = [json.loads(path.read_text()) for path in args.folder.glob("*.json")]
    results.sort(key=lambda result: (result["data"], result["setting"], result["version"]))
    command = "python benchmarks/rows.py " + shlex.join(sys.argv[1:])
    for folder in {part for data in args.data for part in data.partition("=")[2].split(",")}:
        command = command.replace(folder, "<" + "/".join(Path(folder).parts[-2:]) + ">")
    args.output.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
