"""Some updates of a learner and of a generator, on as many processes as it is launched with (see test_processes.py)."""

import sys
from pathlib import Path

from o2o_diffusion.distributed import num_processes, rank
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.checkpoint import save_checkpoint
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop


def work(folder: Path, overrides: list[str]) -> None:
    """Run with `overrides`; the main process saves states before and after under `folder`."""
    run = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*overrides, f"output={folder}/run"]))
    save(folder / "before", run.loop)
    run.plan()  # times updates, in which every process must take part
    run.loop.run()
    save(folder / "after", run.loop)
    run.session.close()


def save(folder: Path, loop: Loop) -> None:
    """The states of components and pools, and the number of processes."""
    if rank() == 0:
        components = {"learner": loop.learner, "generator": loop.refresher.generator, "sampler": loop.sampler}
        states = {name: component.state_dict() for name, component in components.items()}
        save_checkpoint(folder, 0, {"processes": num_processes(), "pools": loop.replay.state_dict(), **states})


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2:])
