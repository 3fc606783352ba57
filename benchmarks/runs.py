"""Run several seeds of one or more settings in parallel; write one JSON file and print one table.

    python benchmarks/runs.py short --seeds 5 --vary generator=cfdg generator=none --set online_steps=6000

A variant is one setting, or several in quotes, named by the value of the first. Runs are stored in
runs/benchmarks/<name>/ and skipped if finished, so that the command can be repeated after an interruption. Each process
has one thread; `--jobs` processes run at a time.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
COLUMNS = {
    "seed": "seed",
    "score_at_switch": "at the switch",
    "worst_score": "worst after it",
    "final_score": "final",
    "gain": "gain",
    "gain_se": "± s.e.",
    "env_steps": "real steps",
    "updates": "updates",
    "generated_rows": "generated rows",
}


def run(folder: Path, overrides: list[str], script: str = "finetune.py") -> None:
    """Start or resume a run unless it is finished; its output goes to a log file next to its folder."""
    if (folder / "summary.json").exists():
        return
    begun = list(folder.glob("checkpoints/step_*"))
    if folder.exists() and not begun:
        shutil.rmtree(folder)
    resume = [f"--resume={folder}"] if begun else [*overrides, f"output={folder}"]
    command = [sys.executable, str(ROOT / "scripts" / script), *resume]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    print(f"{folder}: {'done' if code == 0 else f'exit code {code}'}", flush=True)


def name(variant: str) -> str:
    """Value of a variant's first setting; for a path, its last two parts."""
    return "-".join(Path(shlex.split(variant)[0].partition("=")[2]).parts[-2:])


def table(rows: list[dict]) -> str:
    """Markdown table with one row per run."""
    lines = ["| settings | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        values = (row[name] for name in COLUMNS)
        shown = (f"{value:.1f}" if isinstance(value, float) else f"{value:,}" for value in values)
        lines.append(f"| {row['settings']} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all variants and seeds, write the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the benchmark: docs/results/<name>.json")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 ... N-1")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--vary", nargs="+", action="append", default=[], help="one or more settings each, in quotes")
    parser.add_argument("--set", nargs="+", default=[], help="settings of every run")
    arguments = parser.parse_args()
    runs = {}
    for choice in itertools.product(*arguments.vary):
        for seed in range(arguments.seeds):
            settings = [setting for variant in choice for setting in shlex.split(variant)]
            label = " ".join(name(variant) for variant in choice)
            folder = ROOT / "runs" / "benchmarks" / arguments.name / f"{label.replace(' ', '_') or 'run'}_{seed}"
            if folder in runs:
                raise SystemExit(f"two variants are called '{label}': begin one with another setting")
            common = ["threads=1", "logger.progress=false", f"seed={seed}"]
            runs[folder] = (label, [*arguments.set, *settings, *common])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda item: run(item[0], item[1][1]), runs.items()))
    rows = []
    for folder, (label, _) in runs.items():
        if (folder / "summary.json").exists():
            rows.append({"settings": label, **json.loads((folder / "summary.json").read_text())})
    command = "python benchmarks/runs.py " + shlex.join(sys.argv[1:])
    path = ROOT / "docs" / "results" / f"{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "runs": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
