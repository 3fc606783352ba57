"""Inject the faults of docs/reliability.md in number, and count what is lost.

    python -m benchmarks.faults --full --folder FOLDER          every row, with the table's numbers
    python -m benchmarks.faults --rows F1 F17 --count 50        some rows, with fewer

Each row's result is written to docs/results/faults.json when it is done; rows that are there in full are skipped.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from builders import build, leaves, make_batch, tiny  # noqa: E402
from faults.alterations import WAYS, altered  # noqa: E402
from faults.kills import every_kill  # noqa: E402
from faults.words import command_lines  # noqa: E402

from o2o_diffusion import optimization  # noqa: E402
from o2o_diffusion.data.datasets import load_dataset  # noqa: E402
from o2o_diffusion.data.local import folder_of  # noqa: E402
from o2o_diffusion.environments.recording import Recording, record  # noqa: E402
from o2o_diffusion.errors import InputError  # noqa: E402
from o2o_diffusion.generators.pretrained import read_settings  # noqa: E402
from o2o_diffusion.settings import CONFIGS, available, compose  # noqa: E402
from o2o_diffusion.training.checkpoint import load_checkpoint  # noqa: E402
from o2o_diffusion.training.finetune import Run  # noqa: E402
from o2o_diffusion.training.folders import CHECKPOINTS, GROUPS, SUMMARY, open_run  # noqa: E402
from o2o_diffusion.training.loop import Loop  # noqa: E402
from o2o_diffusion.types import TransitionSpec  # noqa: E402

INTERVAL = 10
"""Ticks between the checkpoints of the runs that are killed."""
HOPPER = TransitionSpec(11, 3)
GRACE = 30.0
"""Seconds that a run may take to save and end after SIGTERM."""
DATASET = "o2o/faults-v0"


def run(folder: Path, *overrides: str) -> Run:
    """A run of some hundred ticks on a recording of 400 steps."""
    own = [
        *(f"task.dataset={DATASET}", "pretrain_updates=40", "warmup_steps=20", "online_steps=80", "eval_interval=40"),
        *("eval_episodes=1", "final_eval_episodes=2", "log_interval=10", "logger.progress=false", "threads=1"),
        *("updates_per_step=1", "sampler.ramp=50", f"checkpoint_interval={INTERVAL}", f"output={folder}"),
    ]
    return Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*own, *overrides]))


def overrides(learner: str = "iql", generator: str = "cfdg") -> list[str]:
    """Small components."""
    return [*tiny("learner", learner), *tiny("generator", generator), "task.max_episode_steps=20"]


def child(function: Callable[[], object]) -> int:
    """Run `function` in a silent child process; returns its id. Its exit code is the function's, or 1."""
    process = os.fork()
    if process == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        try:
            code = int(function() or 0)  # pyright: ignore[reportArgumentType]
        except InputError:
            code = 2
        finally:
            os._exit(code)
    return process


def code_of(process: int) -> int:
    """Wait for a child; returns its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def interrupted(folder: Path, number: signal.Signals, seconds: float) -> tuple[int, float]:
    """Send a signal to a new run `seconds` after its first checkpoint; returns the exit code and the seconds to it."""
    process = child(lambda: run(folder, *overrides()).execute())
    while not (folder / CHECKPOINTS / "step_000000000" / "MANIFEST.json").exists():
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise RuntimeError(f"the run in {folder} ended by itself, with exit code {code_of(process)}")
        time.sleep(0.005)
    time.sleep(seconds)
    start = time.perf_counter()
    os.kill(process, number)
    return code_of(process), time.perf_counter() - start


def kills(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F1: SIGKILL at random times; a whole checkpoint is left, and the run is continued to its end."""
    lost = resumed = finished = 0
    for number in range(count):
        target = folder / f"F1-{number}"
        code, _ = interrupted(target, signal.SIGKILL, rng.uniform(0, 2.5))
        if code == 0:
            finished += 1  # before the signal
        try:
            load_checkpoint(target / CHECKPOINTS)
        except InputError:
            lost += 1
        resumed += (target / SUMMARY).exists() or code_of(child(lambda t=target: Run.resume(t).execute())) == 0
        shutil.rmtree(target)
    return {"injected": count, "passed": resumed, "lost": lost, "finished_before": finished}


def write_points(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F2: SIGKILL before every file operation of a save over another, `keep=1`, of checkpoints and of generators."""
    target, generators = folder / "F2", [build("generator", "synther", seed=seed) for seed in (1, 2)]
    part = run(target / "run", *overrides(generator="none"), "keep_checkpoints=1")
    part.begin()
    generators[0].save_pretrained(target / "generator")
    shutil.copytree(target, folder / "F2-before")
    part.loop.tick()

    def prepare() -> None:
        shutil.rmtree(target)
        shutil.copytree(folder / "F2-before", target)

    def check() -> None:
        from o2o_diffusion.generators.pretrained import find_folder

        open_run(target / "run")
        read_settings(find_folder(target / "generator"))

    saves = every_kill(part.loop.save, target, prepare, check)
    generator_saves = every_kill(lambda: generators[1].save_pretrained(target / "generator"), target, prepare, check)
    return {"injected": saves + generator_saves, "passed": saves + generator_saves}


def equality(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F3: stop at `count` random ticks per learner, with cfdg and with none; the end is that of an unbroken run."""
    passed, injected, failed = 0, 0, []
    for learner in available("learner"):
        for generator in ("cfdg", "none"):
            own = overrides(learner, generator)
            try:
                whole = run(folder / "F3-whole", *own)
            except InputError:  # for other learners, a pretrained policy is needed
                continue
            whole.loop.run()
            for _ in range(count):
                part = run(folder / "F3-part", *own)
                part.begin()
                stop = rng.randrange(1, whole.loop.ticks)
                part.session.interrupted = lambda p=part, s=stop: p.loop.ticks >= s
                part.loop.run()
                resumed = Run.resume(part.folder)
                resumed.loop.run()
                is_equal = equal(resumed.loop.state_dict(), whole.loop.state_dict())
                is_equal &= resumed.loop.logger.path.read_text() == whole.loop.logger.path.read_text()
                injected, passed = injected + 1, passed + is_equal
                failed += [] if is_equal else [[learner, generator, stop]]
                shutil.rmtree(part.folder)
            shutil.rmtree(whole.folder)
    return {"injected": injected, "passed": passed, "failed": failed}


def equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two states are the same to the bit, without times."""
    states = [leaves({k: v for k, v in state.items() if k not in ("seconds", "logger")}) for state in (one, two)]
    return states[0].keys() == states[1].keys() and all(map(same, states[0].values(), states[1].values()))


def same(one: Any, two: Any) -> bool:
    """Equal numbers, tensors or strings; NaN equals NaN."""
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one.nan_to_num(1e9), two.nan_to_num(1e9)))
    return one == two or (one != one and two != two)


def terminations(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F6: SIGTERM at random times; the run saves and ends with 143 within 30 s, and is continued."""
    passed, slowest = 0, 0.0
    for number in range(count):
        target = folder / f"F6-{number}"
        code, seconds = interrupted(target, signal.SIGTERM, rng.uniform(0, 2.5))
        slowest = max(slowest, seconds)
        done = code == 0 or (code == 143 and code_of(child(lambda t=target: Run.resume(t).execute())) == 0)
        passed += done and seconds < GRACE
        shutil.rmtree(target)
    return {"injected": count, "passed": passed, "slowest_seconds": round(slowest, 1)}


def alterations(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F9: alter a file of a checkpoint, a generator or a recording; every one is found."""
    target = folder / "F9"
    part = run(target / "run", *overrides(generator="none"))
    part.begin()
    build("generator", "synther").save_pretrained(target / "generator")
    opened: dict[Path, Callable[[], Any]] = {
        target / "run" / CHECKPOINTS / "step_000000000": lambda: open_run(target / "run"),
        target / "generator": lambda: read_settings(target / "generator"),
        folder_of(DATASET) / "data": lambda: load_dataset(DATASET),
    }
    found, silent = 0, []
    for _ in range(count):
        where = rng.choice(list(opened))
        file = rng.choice([path for path in where.iterdir() if path.is_file() and path.name != "README.md"])
        content, how = file.read_bytes(), rng.choice(WAYS)
        altered(file, how, rng)
        try:
            opened[where]()
            silent.append([file.name, how])
        except InputError:
            found += 1
        file.write_bytes(content)
    shutil.rmtree(target)
    return {"injected": count, "passed": found, "silent": silent}


def command_line_fuzz(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F17: random command lines are valid or refused in one line."""
    passed = valid = 0
    for words in command_lines(count, rng.randrange(2**31)):
        try:
            compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, words)
            valid, passed = valid + 1, passed + 1
        except InputError as error:
            passed += "\n" not in str(error)
        except Exception as error:
            print(words, repr(error))
    return {"injected": count, "passed": passed, "valid": valid}


def bad_updates(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F13: a batch with NaN, infinite or huge rewards in one update; the run ends and nothing saved is not finite."""
    passed = 0
    for number in range(count):
        learner = rng.choice([name for name in available("learner") if name in ("iql", "sac", "td3_bc", "cql", "awac")])
        part, value = run(folder / f"F13-{number}", *overrides(learner, "none")), rng.choice((np.nan, np.inf, 1e30))
        draw, bad, calls = part.loop.draw, rng.randrange(90), iter(range(10**6))

        def faulty(draw=draw, bad=bad, calls=calls, value=value):
            batch, metrics = draw()
            return (batch.where(rewards=batch.rewards + value) if next(calls) == bad else batch), metrics

        part.loop.draw = faulty
        code = code_of(child(part.execute))
        state = leaves(load_checkpoint(part.folder / CHECKPOINTS)["learner"])
        passed += code == 0 and all(v.isfinite().all() for v in state.values() if isinstance(v, torch.Tensor))
        shutil.rmtree(part.folder)
    return {"injected": count, "passed": passed}


def two_processes(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """F21: two runs start in one folder at once; one runs to its end, and the other is refused."""
    passed = 0
    for number in range(count):
        target = folder / f"F21-{number}"
        processes = [child(lambda t=target: run(t, *overrides(generator="none")).execute()) for _ in range(2)]
        codes = sorted(map(code_of, processes))
        lines = [json.loads(line) for line in (target / "metrics.jsonl").open()]
        kinds = [(line["kind"], line["updates"], line["env_steps"]) for line in lines]
        passed += codes == [0, 2] and len(set(kinds)) == len(kinds)
        shutil.rmtree(target)
    return {"injected": count, "passed": passed}


def guard_cost(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """D2: relative cost of the guard of gradients in an update, medians of `count` updates each way, interleaved."""
    guard, none, costs = optimization.guard, torch.zeros(()), {}
    for learner in ("iql", "sac"):
        for width in (64, 256):
            own = [f"learner={learner}", f"learner.hidden=[{width},{width}]"]
            settings = compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, own)
            part, batch = settings.components["learner"].build(HOPPER, seed=0), make_batch(256, HOPPER)
            seconds: list[list[float]] = [[], []]
            for number in range(2 * count + 100):
                optimization.guard = guard if number % 2 else lambda *_, **__: none
                start = time.thread_time()
                part.update(batch)
                seconds[number % 2].append(time.thread_time() - start)
            without, with_guard = (float(np.median(times[50:])) for times in seconds)
            costs[f"{learner} {width}"] = round(with_guard / without - 1, 4)
    optimization.guard = guard
    return {"injected": 0, "passed": 0, "costs": costs}


ROWS: dict[str, tuple[Callable[[Path, int, random.Random], dict[str, Any]], int]] = {
    "F1": (kills, 200),
    "F2": (write_points, 1),
    "F3": (equality, 20),
    "F6": (terminations, 100),
    "F9": (alterations, 1_000),
    "F13": (bad_updates, 50),
    "F17": (command_line_fuzz, 10_000),
    "F21": (two_processes, 50),
    "D2": (guard_cost, 1_000),
}
"""Row of the table -> how it is injected, and how many times in full."""


def main() -> None:
    """Run the rows that are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--count", type=int, default=5, help="faults per row (F3: ticks per learner and generator)")
    parser.add_argument("--full", action="store_true", help="as many faults as in the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="for the runs")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "faults.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(arguments.folder / "datasets")
    if not folder_of(DATASET).exists():
        record(Recording(DATASET, "Pendulum-v1", num_steps=400), progress=False)
    done = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.rows:
        function, full = ROWS[name]
        count = full if arguments.full else min(arguments.count, full)
        if done.get(name, {}).get("count", 0) >= count:
            continue
        start = time.perf_counter()
        result = function(arguments.folder, count, random.Random(f"{name} {arguments.seed}"))
        seconds = round(time.perf_counter() - start)
        done[name] = {"what": str(function.__doc__).partition(": ")[2], "count": count, **result, "seconds": seconds}
        arguments.output.write_text(json.dumps(done, indent=1) + "\n")
        print(name, result, f"{seconds} s", flush=True)


if __name__ == "__main__":
    main()
