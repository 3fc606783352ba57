"""Every learner with every generator on every dataset of results.yaml, into docs/results.md.

    python benchmarks/results.py --data <folder> --datasets hopper/medium-v0 halfcheetah/mixed-v0

The datasets are folders below `--data`. A learner is pretrained once for each dataset and seed, and fine-tuned from
there with each generator. Runs lie under runs/benchmarks/results/ and are skipped when they are finished, so that the
command can be repeated after an interruption; the table is written from whatever is finished, every number goes to
docs/results/results.json.
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

Made by `python benchmarks/results.py --data <folder>`: what the cells are run with stands in `benchmarks/results.yaml`,
every number of every seed in `docs/results/results.json`. Scores are normalised (0 random, 100 expert), means of 20
episodes at the switch and at the end and of 10 on the way, then mean ± standard deviation over seeds; the area under
the curve is the mean of a run's evaluations, the worst score that of all after the switch. Generated rows are those of
`generator.updates=5000 generator.restarts=0`, which are 8,000 and 8 by default since: [learners.md](learners.md) says
what changes. The data are local recordings, not D4RL's, and the budgets are a fiftieth of the papers' or less, so these
numbers compare the learners here and nothing else. What they say: [learners.md](learners.md)."""


def settings(learner: str) -> list[str]:
    """Of a learner's runs, whatever the dataset and the generator."""
    budget, *own = PLAN.learners[learner]
    return [*PLAN.common, *PLAN.budgets[budget], *own, f"learner={learner}", "threads=1", "logger.progress=false"]


def folder(dataset: str, learner: str, generator: str, seed: int) -> Path:
    """Where a cell's run lies; `generator` "pretrain" is the offline part of all of them."""
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
    """Markdown: a row for a learner with a generator, mean ± standard deviation over seeds and every final score."""
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
    """docs/results.md and docs/results/results.json, of what is finished."""
    rows = collect(seeds)
    documents = ROOT / "docs"
    plan = OmegaConf.to_container(PLAN)
    (documents / "results" / "results.json").write_text(json.dumps({"plan": plan, "runs": rows}, indent=1) + "\n")
    parts = [INTRODUCTION] + [f"## {dataset}\n\n{table(rows, dataset, seeds)}" for dataset in PLAN.datasets]
    (documents / "results.md").write_text("\n\n".join(parts) + "\n")


def main() -> None:
    """Parse, run, write."""
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
