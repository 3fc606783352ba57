"""Does the shadow test refuse rows that are known to hurt? The known case: IQL with sharp weights on Hopper.

    python benchmarks/shadow.py <hopper/medium-v0> --pretrained <offline run of hopper-iql>

Continues the pretrained run with CFDG up to its first refresh (`--settings` of the generator) and takes the test with
its rows, and with controls: real rows, real rows with actions moved by a standard deviation of 0.3, and nonsense
(columns shuffled independently). The learner clones generated actions, as in the known case, or leaves them out.
Numbers of updates can be compared. Results are written to docs/results/shadow.json.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from o2o_diffusion.protocols import Learner
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.shadow import Shadow, shadow_test
from o2o_diffusion.types import Source, Transitions

ROOT = Path(__file__).parent.parent
ROWS, MOVED = 2_000, 0.3


def first_refresh(arguments: argparse.Namespace, folder: str) -> tuple[Run, Loop]:
    """The run after its first refresh."""
    given = [f"task.dataset={arguments.dataset}", f"pretrained={arguments.pretrained}", f"seed={arguments.seed}"]
    given += ["experiment=hopper-iql", "generator=cfdg", "eval_episodes=1", "final_eval_episodes=1", "threads=1"]
    given += [f"generator.{setting}" for setting in arguments.settings]
    run = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*given, f"output={folder}/run"]))
    while run.loop.refresher.count == 0:
        run.loop.tick()
    return run, run.loop


def kinds(loop: Loop) -> Iterator[tuple[str, dict[Source, Transitions]]]:
    """Rows of each kind, by label."""
    random = torch.Generator().manual_seed(0)
    generator, replay = loop.refresher.generator, loop.replay
    counts = generator.share(replay).counts(ROWS)
    options = {"replay": replay, "agent": loop.learner}
    real = {source: draw(replay, source, count, random) for source, count in counts.items()}
    yield "real rows", real
    yield "cfdg", {source: generator.sample(count, source=source, **options) for source, count in counts.items()}
    noise = {source: MOVED * torch.randn(batch.actions.shape, generator=random) for source, batch in real.items()}
    yield "moved actions", {s: b.where(actions=(b.actions + noise[s]).clamp(-1, 1)) for s, b in real.items()}
    yield "nonsense", {source: shuffled(batch, random) for source, batch in real.items()}


def draw(replay: Replay, source: Source, count: int, random: torch.Generator) -> Transitions:
    """`count` real rows with the label of `source`."""
    pool = replay.pools[source.real]
    return pool[torch.randint(len(pool), (count,), generator=random)]


def shuffled(batch: Transitions, random: torch.Generator) -> Transitions:
    """Each field from another row."""
    mixed = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return Transitions(**{name: value[torch.randperm(len(batch), generator=random)] for name, value in mixed.items()})


def learner_of(run: Run, *, clones: bool) -> Learner:
    """The run's learner, cloning generated actions or not."""
    component = run.settings.components["learner"]
    config = replace(component.config, clone_generated=clones)
    learner: Learner = replace(component, config=config).build(run.task.spec, seed=0, device=run.session.device)
    learner.load_state_dict(run.loop.learner.state_dict())
    return learner


def main() -> None:
    """Take the test for every kind of rows, with and without cloning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="hopper/medium-v0: Minari id or folder")
    parser.add_argument("--pretrained", required=True, help="folder of the offline run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, nargs="+", default=[200])
    parser.add_argument("--settings", nargs="*", default=[], help="of the generator")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        run, loop = first_refresh(arguments, folder)
        for kind, batches in kinds(loop):
            loop.replay.replace_generated(batches)
            for clones in (True, False):
                for updates in arguments.updates:
                    parts = loop.sampler, loop.refresher, loop.replay, loop.current
                    effect = shadow_test(Shadow(updates=updates), learner_of(run, clones=clones), *parts)
                    numbers = {name: round(value, 3) for name, value in effect.metrics.items()}
                    rows.append({"rows": kind, "clones": clones, "updates": updates, **numbers})
                    rows[-1]["accepted"] = effect.accepted
                    print(json.dumps(rows[-1]), flush=True)
    command = "python benchmarks/shadow.py " + shlex.join(sys.argv[1:])
    for path, name in ((arguments.dataset, "<hopper/medium-v0>"), (arguments.pretrained, "<offline run>")):
        command = command.replace(path, name)
    target = ROOT / "docs" / "results" / "shadow.json"
    target.write_text(json.dumps({"command": command, "tests": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
