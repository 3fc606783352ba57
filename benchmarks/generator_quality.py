"""How good and how fast the default generator is: trains it on the replay of one or two datasets and prints JSON.

    python benchmarks/generator_quality.py OFFLINE_FOLDER [--online ONLINE_FOLDER] [generator.setting=value ...]

Every tenth episode is held out; of the second dataset, episodes in random order are trained on. Needs scikit-learn.
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch
from omegaconf import OmegaConf

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.replay import Replay
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.hardware import choose_matmul
from o2o_diffusion.quality import auc, dynamics_error, sliced_wasserstein
from o2o_diffusion.types import Source, Transitions

NAMES = {Source.GENERATED_OFFLINE: "offline", Source.GENERATED_ONLINE: "online"}
SOLVERS = {"dpm 16": ("dpm", 16), "dpm 32": ("dpm", 32), "heun 18": ("heun", 18), "heun 128": ("heun", 128)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("offline", help="dataset folder whose rows carry the offline label")
    parser.add_argument("--online", help="dataset folder whose rows carry the online label")
    parser.add_argument("--online-rows", type=int, default=10_000, help="rows of it to train on")
    parser.add_argument("--rows", type=int, default=10_000, help="rows compared, and rows drawn")
    parser.add_argument("--environment", help="id of a MuJoCo task for the dynamics error, such as Hopper-v5")
    parser.add_argument("--limit", type=float, default=9.9, help="leave out rows with larger entries (Hopper: 9.9)")
    parser.add_argument("--solvers", action="store_true", help="also time every solver, on a tenth of the rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="train and sample in bf16 autocast")
    parser.add_argument("settings", nargs="*", help="settings of the generator, as num_steps=32")
    return parser.parse_intermixed_args()


def split(folder: str) -> tuple[list, Transitions]:
    """Episodes to train on, and the held-out transitions."""
    episodes = list(load_dataset(folder).episodes)
    kept = [episode for number, episode in enumerate(episodes) if number % 10 != 9]
    return kept, Transitions.cat([episode.transitions() for episode in episodes[9::10]])


def fill(spec, offline, online, num_online: int) -> Replay:
    capacities = {Source.OFFLINE: sum(map(len, offline)), Source.ONLINE: num_online}
    replay = Replay(spec, capacities)
    replay.load(offline)
    for number in torch.randperm(len(online), generator=torch.Generator().manual_seed(0)).tolist():
        episode = online[number]
        room = num_online - len(replay.online)
        if room:
            replay.online.append(episode.transitions()[: min(room, len(episode))])
    return replay


def train(generator: CFDG, replay: Replay) -> float:
    """Seconds of one refresh."""
    start = time.perf_counter()
    agent = None  # CFDG asks nothing of it
    generator.begin_refresh(replay, agent)  # pyright: ignore[reportArgumentType]
    for _ in range(generator.num_updates):
        generator.update(replay, agent)  # pyright: ignore[reportArgumentType]
    return time.perf_counter() - start


def some(batch: Transitions, size: int, seed: int) -> Transitions:
    return batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:size]]


def compare(generator: CFDG, source: Source, held_out: Transitions, known: Transitions, args) -> dict[str, Any]:
    start = time.perf_counter()
    generated = generator.sample(args.rows, source=source)
    seconds = time.perf_counter() - start
    flatten = generator.spec.flatten
    real, floor = flatten(some(held_out, args.rows, 0)), flatten(some(known, args.rows, 1))
    generated_rows = flatten(generated)[: len(real)]
    result: dict[str, Any] = {
        "rows_per_second": len(generated) / seconds,
        "auc": auc(generated_rows, real),
        "auc_floor": auc(floor[: len(real)], real),
        "sliced_wasserstein": sliced_wasserstein(generated_rows, real),
        "sliced_wasserstein_floor": sliced_wasserstein(floor, real),
        "terminations": float(generated.terminations.mean()),
        "terminations_real": float(held_out.terminations.mean()),
    }
    if args.environment:
        with gym.make(args.environment) as env:
            env.reset(seed=0)
            result["dynamics_error"] = dynamics_error(env, generated, held_out, limit=args.limit)
            result["dynamics_error_floor"] = dynamics_error(env, some(held_out, 1000, 0), held_out, limit=args.limit)
    return result


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    matmul = choose_matmul()
    spec = load_dataset(args.offline).spec
    offline, held_offline = split(args.offline)
    online, held_online = split(args.online) if args.online else ([], None)
    replay = fill(spec, offline, online, args.online_rows if online else 0)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CFDG.Config), OmegaConf.from_cli(args.settings)))
    generator = CFDG(config, spec, seed=args.seed)  # pyright: ignore[reportArgumentType]
    report = {"matmul": matmul, "settings": OmegaConf.to_container(OmegaConf.structured(config))}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
        steps = generator.num_updates
        report["training_seconds"] = train(generator, replay)
        report["steps_per_second"] = steps / report["training_seconds"]
        pools = {Source.GENERATED_OFFLINE: (held_offline, replay.offline)}
        if held_online is not None:
            pools[Source.GENERATED_ONLINE] = (held_online, replay.online)
        for source, (held_out, pool) in pools.items():
            report[NAMES[source]] = compare(generator, source, held_out, pool.all(), args)
        if args.solvers:
            report["rows_per_second"] = {name: speed(generator, *solver, args) for name, solver in SOLVERS.items()}
    print(json.dumps(report, indent=2))


def speed(generator: CFDG, solver: str, num_steps: int, args) -> float:
    """Guided rows per second of one solver."""
    generator.config = replace(generator.config, solver=solver, num_steps=num_steps)
    rows = args.rows // 10
    start = time.perf_counter()
    generator.sample(rows)
    return rows / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
