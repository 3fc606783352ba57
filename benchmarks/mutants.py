"""Does a test fail for every one-line mistake in mutants.yaml? Results go to docs/results/mutants.json.

    python benchmarks/mutants.py [--only NAME ...] [--list mutants.yaml]

Each mutant replaces one piece of text in a copy of the checkout and runs the tests named with it (`-x`), two mutants at
a time. A mutant that was tried before against the same text and tests is not run again.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parent.parent
LIST, RESULTS = Path(__file__).with_suffix(".yaml"), ROOT / "docs" / "results" / "mutants.json"
COPIED = ("o2o_diffusion", "configs", "scripts", "tests", "examples", "README.md", "pyproject.toml")
WORKERS, LIMIT = 2, 300  # seconds of a mutant; a mutant that hangs is noticed


def key(mutant: dict) -> str:
    """Changes whenever the mutant, its file or its tests change."""
    parts = [json.dumps(mutant, sort_keys=True), (ROOT / mutant["file"]).read_text()]
    for test in mutant["tests"]:
        path = ROOT / test.partition("::")[0]
        parts += [file.read_text() for file in (sorted(path.glob("**/*.py")) if path.is_dir() else [path])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def mutated(mutant: dict) -> str:
    """The text of the file with the mistake; ValueError unless the text to replace is there exactly once."""
    text = (ROOT / mutant["file"]).read_text()
    if text.count(mutant["before"]) != 1:
        raise ValueError(f"{mutant['name']}: {text.count(mutant['before'])} places in {mutant['file']}, expected 1")
    return text.replace(mutant["before"], mutant["after"])


def run(mutant: dict, folder: Path) -> dict:
    """Try one mutant in the copy `folder`."""
    start, file = time.perf_counter(), folder / mutant["file"]
    original = file.read_text()
    file.write_text(mutated(mutant))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0", *mutant["tests"]]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
        noticed = done.returncode == 1
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        by = failed[0].split(" ")[1] if failed else done.stdout[-200:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        noticed, by = True, "time limit"
    finally:
        file.write_text(original)
    seconds = round(time.perf_counter() - start, 1)
    print(f"{'noticed' if noticed else 'MISSED '} {mutant['name']} ({seconds} s) {by}", flush=True)
    return {"name": mutant["name"], "key": key(mutant), "noticed": noticed, "by": by, "seconds": seconds}


def main() -> None:
    """Try what has not been tried, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of mutants")
    parser.add_argument("--list", type=Path, default=LIST, help="file of mutants; results of another go next to it")
    arguments = parser.parse_args()
    results = RESULTS if arguments.list == LIST else arguments.list.with_suffix(".json")
    mutants: Any = OmegaConf.to_container(OmegaConf.load(arguments.list))
    for mutant in mutants:
        mutated(mutant)
    found = {row["name"]: row for row in json.loads(results.read_text())["mutants"]} if results.exists() else {}
    found = {mutant["name"]: found[mutant["name"]] for mutant in mutants if mutant["name"] in found}
    waiting = [m for m in mutants if found.get(m["name"], {}).get("key") != key(m)]
    waiting = [m for m in waiting if not arguments.only or m["name"] in arguments.only]
    with tempfile.TemporaryDirectory() as temporary:
        folders: Queue[Path] = Queue()
        for number in range(WORKERS):
            folder = Path(temporary) / str(number)
            for name in COPIED:
                source = ROOT / name
                copy = shutil.copytree if source.is_dir() else shutil.copy
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                copy(source, folder / name)
            folders.put(folder)

        def take(mutant: dict) -> None:
            folder = folders.get()
            try:
                found[mutant["name"]] = run(mutant, folder)
                write(found, results)
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(take, waiting))
    write(found, results)
    missed = [row["name"] for row in found.values() if not row["noticed"]]
    print(f"{len(found) - len(missed)} of {len(found)} noticed; missed: {', '.join(missed) or 'none'}")


def write(found: dict[str, dict], path: Path) -> None:
    """Write all results so far."""
    rows = sorted(found.values(), key=lambda row: row["name"])
    content = {"command": "python benchmarks/mutants.py", "mutants": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
