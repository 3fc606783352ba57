"""What the gate says of default generators and of rows that are wrong on purpose: where its limits come from.

    python benchmarks/gate.py --data hopper=OFFLINE_FOLDER,ONLINE_FOLDER pointmaze=OFFLINE_FOLDER --vary cfdg synther

Each generator is trained once with its defaults; without an online dataset, every fifth episode has the online label.
Generated rows are kept in runs/benchmarks/gate/, so that changed limits or measures need no new training. Generators
without labels are judged as online rows only, like the rows that they contribute to a run. Writes
docs/results/gate.json and prints it as a table.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.quality.gate import judge
from o2o_diffusion.quality.real import RealData, copies, draw
from o2o_diffusion.quality.verdict import Verdict
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Gate
from o2o_diffusion.settings import compose
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.training.session import set_matmul
from o2o_diffusion.types import Source, Transitions

ROOT = Path(__file__).parent.parent
ROWS = 4_000
COLUMNS = "duplicates", "outside_range", "at_limits", "missed_endings", "actions", "outcomes", "auc"


@dataclass(frozen=True)
class Settings:
    """No run settings: only the generator's are composed."""


def fill(offline: str, online: str | None, online_rows: int) -> Replay:
    """The replay of a task: offline rows, and at most `online_rows` online ones of episodes in random order."""
    dataset = load_dataset(offline)
    old, new = dataset.episodes, load_dataset(online).episodes if online else dataset.episodes[::5]
    if not online:
        old = [episode for number, episode in enumerate(old) if number % 5]
    sizes = {Source.OFFLINE: sum(map(len, old)), Source.ONLINE: min(online_rows, sum(map(len, new)))}
    replay = Replay(dataset.spec, sizes)
    replay.load(old)
    order = torch.randperm(len(new), generator=torch.Generator().manual_seed(0)).tolist()
    for number, episode in enumerate(order):
        if room := replay.online.capacity - len(replay.online):
            replay.online.append(new[episode].transitions()[:room], episode=number)
    return replay


def generated(name: str, replay: Replay, path: Path) -> dict[Source, Transitions]:
    """Rows of the default generator `name`, of each label that it contributes; read from `path` if they were made."""
    given = [f"generator={name}"]
    generator = compose(None, Settings, ("generator",), given).components["generator"].build(replay.spec, seed=0)
    sources = list(generator.share(replay).counts(ROWS))
    if not path.exists():
        refresher = Refresher(generator)
        refresher.train(replay, NoAgent())
        options: dict[str, Any] = {"replay": refresher.training(replay), "agent": NoAgent()}
        rows = {source: generator.sample(ROWS, source=source, **options) for source in sources}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({source.name: replay.spec.flatten(batch) for source, batch in rows.items()}, path)
    saved = torch.load(path, weights_only=True)
    return {source: replay.spec.unflatten(saved[source.name], source) for source in sources}


def wrong(replay: Replay) -> Iterator[tuple[str, dict[Source, Transitions]]]:
    """Named rows of the offline label made from training rows: copies, and rows with one or more faults."""
    source, spec = Source.GENERATED_OFFLINE, replay.spec
    real = RealData.of(replay, source)
    assert real is not None
    rows, random = draw(real.training, 2_000, 0), torch.Generator().manual_seed(0)
    flat, (low, high) = spec.flatten(rows), real.limits
    coins = torch.rand(flat.shape, generator=random) < 0.5
    stretched = flat.mean(0) + 3 * (flat - flat.mean(0))
    columns = [column[torch.randperm(len(flat), generator=random)] for column in flat.T]
    yield "real training rows", {source: rows}
    yield "copies with 3% noise", {source: copies(rows, 0)}
    yield "ten rows, 200 times", {source: rows[torch.arange(2_000) % 10]}
    made = {
        "corners of the range": torch.where(coins, low, high),
        "three times as wide, clipped": stretched.clamp(low, high),
        "columns shuffled": torch.stack(columns, 1),
        "nothing finite": flat[:0],
    }
    for name, flat in made.items():
        yield name, {source: spec.unflatten(flat, source)}


def worst(verdict: Verdict) -> dict[str, list[float]]:
    """Each number and that of real rows, for the label that is nearer to the limit."""
    found = {}
    for finding in verdict.findings:  # the worst first
        found.setdefault(finding.check.name, [round(finding.value, 4), round(finding.real, 4)])
    return found


def row(result: dict[str, Any]) -> str:
    """A row of the table: each number with that of real rows in parentheses."""
    numbers = result["numbers"]
    cells = [f"{numbers[name][0]:.2f} ({numbers[name][1]:.2f})" if name in numbers else "-" for name in COLUMNS]
    decision = "accepted" if result["accepted"] else "refused"
    return " | ".join(["", result["data"], result["rows"], *cells, decision, ""]).strip()


def main() -> None:
    """Judge everything, write the results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=OFFLINE[,ONLINE]")
    parser.add_argument("--vary", nargs="+", default=["cfdg", "synther"], metavar="GENERATOR")
    parser.add_argument("--online-rows", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_matmul("auto")
    results, folders = [], []
    for data in args.data:
        name, _, paths = data.partition("=")
        offline, _, online = paths.partition(",")
        folders += [offline, online]
        replay = fill(offline, online or None, args.online_rows)
        path = ROOT / "runs" / "benchmarks" / "gate"
        made = ((kind, generated(kind, replay, path / f"{name}_{kind}.pt")) for kind in args.vary)
        for kind, batches in (*made, *wrong(replay)):
            start = time.process_time()
            asked = {source: max(len(batch), 2_000) for source, batch in batches.items()}
            verdict = judge(batches, asked, replay, Gate())
            results.append({"data": name, "rows": kind, "accepted": verdict.accepted, "verdict": str(verdict)})
            results[-1] |= {"cpu_seconds": round(time.process_time() - start, 1), "numbers": worst(verdict)}
            print(row(results[-1]), flush=True)
    command = "python benchmarks/gate.py " + shlex.join(sys.argv[1:])
    for folder in filter(None, folders):
        command = command.replace(folder, "<" + "/".join(Path(folder).parts[-2:]) + ">")
    output = ROOT / "docs" / "results" / "gate.json"
    output.write_text(json.dumps({"command": command, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
