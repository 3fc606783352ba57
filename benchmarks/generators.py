"""Compare generators and solvers: train each setting once per dataset and sample with every solver.

    python benchmarks/generators.py solvers --data HOPPER=OFFLINE_FOLDER,ONLINE_FOLDER DOOR=OFFLINE_FOLDER \
        --vary cfdg edis pgr synther --solvers dpm-8 dpm-16 dpm-32 heun-128

A setting is a generator's name with overrides, e.g. `cfdg:guidance=2,label_dropout=0.1`. Every tenth episode is held
out. `--online-rows` rows of the online dataset, in random order of episodes, are labeled online; without an online
dataset, every fifth episode of the offline one is, so that both labels have the same distribution. EDIS queries an IQL
policy trained for `--policy-updates` updates on the offline rows. Results are cached in runs/benchmarks/<name>/; the
table is printed and all numbers are written to docs/results/<name>.json. Two settings run at a time, one thread each.
"""

import argparse
import json
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.quality.comparison import RealData, compare
from o2o_diffusion.quality.dynamics import Simulator
from o2o_diffusion.quality.measures import dynamics, marginals, residuals, transport, trees, validity
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Budget
from o2o_diffusion.settings import compose
from o2o_diffusion.training.session import set_matmul
from o2o_diffusion.types import Episode, Source, Transitions

ROOT = Path(__file__).parent.parent
COLUMNS = {
    "auc": "AUC", "actions": "actions", "outcomes": "outcomes", "sliced_wasserstein_2": "sliced W2",
    "marginal": "marginal", "dynamics_error": "dynamics",
    "dynamics_median": "(median)",
    "dynamics_ratio": "(learned, ratio)", "dynamics_in_variances": "(in variances)", "terminations": "terminations",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """No run settings: only the generator's are composed."""


@dataclass(frozen=True)
class Cell:
    """One generator on one dataset."""

    data: str
    offline: str
    online: str | None
    setting: str
    solvers: tuple[str, ...]
    rows: int
    online_rows: int
    policy_updates: int
    seed: int
    path: Path


def split(dataset: Dataset) -> tuple[list[Episode], list[Episode]]:
    """Split off every tenth episode: (training episodes, held-out episodes)."""
    numbered = list(enumerate(dataset.episodes))
    return [e for n, e in numbered if n % 10 != 9], [e for n, e in numbered if n % 10 == 9]


def fill(cell: Cell) -> tuple[Replay, Transitions, Dataset]:
    """The replay, held-out rows of the online label, and the offline dataset with its environment."""
    dataset = load_dataset(cell.offline)
    offline, held_out = split(dataset)
    if cell.online:
        online, held_out = split(load_dataset(cell.online))
    else:
        offline, online = [e for n, e in enumerate(offline) if n % 5], offline[::5]
    capacities = {Source.OFFLINE: sum(map(len, offline)), Source.ONLINE: min(cell.online_rows, sum(map(len, online)))}
    replay = Replay(dataset.spec, capacities)
    replay.load(offline)
    for number in torch.randperm(len(online), generator=torch.Generator().manual_seed(0)).tolist():
        room = replay.online.capacity - len(replay.online)
        if room:
            replay.online.append(online[number].transitions()[:room], episode=number)
    return replay, Transitions.cat([episode.transitions() for episode in held_out]), dataset


def policy(replay: Replay, updates: int, seed: int) -> IQL:
    """Train a policy for generators that query one."""
    learner, sampler = IQL(IQL.Config(), replay.spec, seed=seed), Mixture(Mixture.Config(), replay.spec, seed=seed)
    phase = learner.phases(Budget(updates, 0))[0]
    learner.begin_phase(phase, replay)
    for _ in range(updates):
        learner.update(replay.scaled(replay.gather(sampler.sample(replay, phase.shares, phase.batch_size))))
    return learner


def run(cell: Cell) -> Path:
    """Train the generator, sample with every solver, measure, and write the results."""
    if cell.path.exists():
        return cell.path
    torch.set_num_threads(1)
    matmul = set_matmul("auto")
    replay, held_out, dataset = fill(cell)
    agent = policy(replay, cell.policy_updates, cell.seed)
    name, _, overrides = cell.setting.partition(":")
    given = [f"generator={name}", *(f"generator.{part}" for part in overrides.split(",") if part)]
    generator = (
        compose(None, Settings, ("generator",), given).components["generator"].build(replay.spec, seed=cell.seed)
    )
    start = time.perf_counter()
    metrics, updates = {}, generator.next_refresh(replay).updates
    generator.begin_refresh(replay, agent)
    for _ in range(updates):
        metrics |= generator.update(replay, agent)
    result: dict[str, Any] = {
        "data": cell.data,
        "setting": cell.setting,
        "matmul": matmul,
        "rows_per_label": [len(replay.offline), len(replay.online)],
        "training_seconds": time.perf_counter() - start,
        "metrics": {key: float(value) for key, value in metrics.items()},
        "solvers": {},
    }
    simulator = Simulator.find(dataset.environment, held_out)
    real = RealData(held_out, replay.online.all())
    for solver in cell.solvers:
        kind, *numbers = solver.split("-")
        steps, restarts = (*map(int, numbers), 0)[:2]
        sampling = replace(generator.config.sampling, solver=kind, num_steps=steps, restarts=restarts)
        generator.config = replace(generator.config, sampling=sampling)
        start = time.perf_counter()
        rows = generator.sample(cell.rows, source=Source.GENERATED_ONLINE, replay=replay, agent=agent)
        speed = len(rows) / (time.perf_counter() - start)
        measures = (trees, residuals, marginals, transport, dynamics, validity)
        numbers = compare(rows, real, rows=cell.rows, simulator=simulator, seed=cell.seed, measures=measures)
        kept = {key: value for key, value in numbers.items() if key not in ("marginals", "dynamics")}
        result["solvers"][solver] = {"rows_per_second": speed, **kept}
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    cell.path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{cell.path}: done", flush=True)
    return cell.path


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table with one row per dataset, setting and solver, each dataset's floor first."""
    lines = [
        "| data | setting | solver | rows/s | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    seen = set()

    def show(head: list[str], numbers: dict[str, Any], kind: str) -> None:
        values = [numbers[name].get(kind) if name in numbers else None for name in COLUMNS]
        lines.append("| " + " | ".join([*head, *("-" if v is None else f"{v:.3f}" for v in values)]) + " |")

    for result in results:
        for solver, numbers in result["solvers"].items():
            if result["data"] not in seen:
                show([result["data"], "real rows", "-", "-"], numbers, "floor")
                seen.add(result["data"])
            show(
                [result["data"], result["setting"], solver, f"{numbers['rows_per_second']:,.0f}"], numbers, "generated"
            )
    return "\n".join(lines)


def main() -> None:
    """Run the cells in parallel, write the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the benchmark: docs/results/<name>.json")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=OFFLINE[,ONLINE]")
    parser.add_argument("--vary", nargs="+", required=True, metavar="GENERATOR[:SETTING=VALUE,...]")
    parser.add_argument("--solvers", nargs="+", default=["dpm-16-8"], metavar="dpm|heun-STEPS[-RESTARTS]")
    parser.add_argument("--rows", type=int, default=5_000, help="rows drawn, and real rows they are compared with")
    parser.add_argument("--online-rows", type=int, default=10_000)
    parser.add_argument("--policy-updates", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    cells = []
    for data, setting in product(args.data, args.vary):
        name, _, folders = data.partition("=")
        offline, _, online = folders.partition(",")
        path = ROOT / "runs" / "benchmarks" / args.name / f"{name}_{setting.replace(':', '_').replace(',', '_')}.json"
        sizes = (args.rows, args.online_rows, args.policy_updates, args.seed)
        cells.append(Cell(name, offline, online or None, setting, tuple(args.solvers), *sizes, path))
    with ProcessPoolExecutor(args.jobs) as pool:
        paths = list(pool.map(run, cells))
    results = [json.loads(path.read_text()) for path in paths]
    folders = {
        folder: "<" + "/".join(Path(folder).parts[-2:]) + ">" for c in cells for folder in (c.offline, c.online or "")
    }
    command = "python benchmarks/generators.py " + shlex.join(sys.argv[1:])
    for folder, shown in folders.items():
        command = command.replace(folder, shown) if folder else command
    output = ROOT / "docs" / "results" / f"{args.name}.json"
    output.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
