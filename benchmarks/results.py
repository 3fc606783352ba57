"""Run every learner with every generator on every dataset in results.yaml, and write docs/results.md.

    python benchmarks/results.py --data <folder> --datasets hopper/medium-v0 halfcheetah/mixed-v0

The datasets are folders in `--data`. Each learner is pretrained once per dataset and seed, then fine-tuned with each
generator. Runs are stored in runs/benchmarks/results/ and skipped if finished, so that the command can be repeated
after an interruption; the table covers the finished runs, and every number is written to docs/results/results.json.
"""

import argparse
import itertools
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from omegaconf import OmegaConf
from runs import ROOT, run

RUNS = ROOT / "runs" / "benchmarks" / "results"
PLAN = OmegaConf.load(Path(__file__).with_suffix(".yaml"))
COLUMNS = {
    "score_at_switch": "at the switch",
    "worst_score": "worst after it",
    "final_score": "final",
    "area_under_curve": "area under curve",
}
INTRODUCTION = """# Every learner, with and without generated rows

Made by `python benchmarks/results.py --data <folder>`; `benchmarks/results.yaml` has the settings of every cell,
`docs/results/results.json` every number of every seed. Scores are normalized (0 random, 100 expert): means of 20
episodes at the switch and at the end and of 10 in between, then mean ± standard deviation over seeds. The area under
the curve is the mean over a run's evaluations, the worst score the minimum over all evaluations after the switch.
Generated rows are from `generator.updates=5000 generator.sampling.restarts=0`; the defaults have since become 6,000 and
8, with the effects described in [learners.md](learners.md). The data are local recordings, not D4RL's, and the budgets
are a fiftieth of the papers' or less, so these numbers compare the learners with each other and nothing else. For the
findings, see [learners.md](learners.md)."""


def settings(learner: str) -> list[str]:
    """Settings of a learner's runs, for any dataset and generator."""
    budget, *own = PLAN.learners[learner]
    return [*PLAN.common, *PLAN.budgets[budget], *own, f"learner={learner}", "threads=1", "logger.progress=false"]


def folder(dataset: str, learner: str, generator: str, seed: int) -> Path:
    """Run folder of a cell; `generator` "pretrain" is the offline run shared by all generators."""
    return RUNS / dataset.replace("/", "-") / f"{learner}_{generator}_{seed}"


def cells(dataset: str, learner: str, seed: int, data: Path) -> None:
    """Pretrain, then fine-tune with each generator."""
    common = [*settings(learner), f"task.dataset={data / dataset}", f"seed={seed}"]
    start = []
    if "pretrain_updates=0" not in common:
        pretrained = folder(dataset, learner, "pretrain", seed)
        offline = [o for o in common if o.partition("=")[0] not in ("online_steps", "warmup_steps")]
        run(pretrained, offline, script="pretrain.py")
        start = [f"pretrained={pretrained}"]
    for generator, own in PLAN.generators.items():
        run(folder(dataset, learner, generator, seed), [*common, f"generator={generator}", *own, *start])


def collect(seeds: int) -> list[dict]:
    """The summaries of all finished runs."""
    rows = []
    for dataset, learner, generator in itertools.product(PLAN.datasets, PLAN.learners, PLAN.generators):
        for seed in range(seeds):
            path = folder(dataset, learner, generator, seed) / "summary.json"
            if path.exists():
                cell = {"dataset": dataset, "learner": learner, "generator": generator}
                rows.append(cell | json.loads(path.read_text()))
    return rows


def table(rows: list[dict], dataset: str, seeds: int) -> str:
    """Markdown table, one row per learner and generator: mean ± standard deviation over seeds, every final score."""
    head = ["learner", "generator", *COLUMNS.values(), "final, each seed", "offline updates + steps", "updates"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for learner, generator in itertools.product(PLAN.learners, PLAN.generators):
        cell = {"dataset": dataset, "learner": learner, "generator": generator}
        found = [row for row in rows if cell.items() <= row.items()]
        finals = {row["seed"]: f"{row['final_score']:.1f}" for row in found}
        for seed in range(seeds):
            begun = folder(dataset, learner, generator, seed).with_suffix(".log").exists()
            finals.setdefault(seed, "did not finish" if begun else "not run")
        shown = ", ".join(finals[seed] for seed in range(seeds)) if found else "not run"
        values = [spread([row[name] for row in found]) for name in COLUMNS]
        updates = f"{found[0]['updates']:,}" if found else "-"
        lines.append("| " + " | ".join([learner, generator, *values, shown, budget(learner), updates]) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    if not values:
        return "-"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def budget(learner: str) -> str:
    """Offline updates and online steps."""
    plan = dict(setting.split("=", 1) for setting in settings(learner))
    return f"{int(plan['pretrain_updates']):,} + {int(plan['online_steps']):,}"


def write(seeds: int) -> None:
    """Write docs/results.md and docs/results/results.json for the finished runs."""
    rows = collect(seeds)
    documents = ROOT / "docs"
    plan = OmegaConf.to_container(PLAN)
    (documents / "results" / "results.json").write_text(json.dumps({"plan": plan, "runs": rows}, indent=1) + "\n")
    parts = [INTRODUCTION] + [f"## {dataset}\n\n{table(rows, dataset, seeds)}" for dataset in PLAN.datasets]
    (documents / "results.md").write_text("\n\n".join(parts) + "\n")


def main() -> None:
    """Run all cells and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in which the datasets' folders lie")
    parser.add_argument("--datasets", nargs="*", default=list(PLAN.datasets), help="of which to run the cells")
    parser.add_argument("--learners", nargs="*", default=list(PLAN.learners), help="of which to run the cells")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 ... N-1")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    arguments = parser.parse_args()
    todo = itertools.product(arguments.datasets, arguments.learners, range(arguments.seeds))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda cell: cells(*cell, arguments.data.resolve()), todo))
    write(arguments.seeds)


if __name__ == "__main__":
    main()
