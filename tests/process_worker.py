"""Some updates of a learner and of a generator, on as many processes as it is launched with (see test_processes.py)."""

import sys
from pathlib import Path

from o2o_diffusion.distributed import num_processes, rank
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.checkpoint import save_checkpoint
from o2o_diffusion.training.finetune import GROUPS, Run
from o2o_diffusion.training.loop import Finetuning

folder, *overrides = sys.argv[1:]
run = Run(compose(CONFIGS / "finetune.yaml", Finetuning.Config, GROUPS, [*overrides, f"output={folder}/run"]))
before = {"learner": run.loop.learner.state_dict(), "generator": run.loop.generator.state_dict()}
if rank() == 0:
    save_checkpoint(Path(folder) / "before", 0, {"processes": num_processes(), **before})
run.plan()  # times updates, in which every process must take part
run.loop.run()
run.accelerator.wait_for_everyone()
if rank() == 0:
    after = {"learner": run.loop.learner.state_dict(), "generator": run.loop.generator.state_dict()}
    save_checkpoint(Path(folder) / "after", 0, {"pools": run.loop.replay.state_dict(), **after})
run.accelerator.end_training()
