"""Evaluate the policy of a run's newest checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import compose
from o2o_diffusion.storage import check_writable
from o2o_diffusion.training.checkpoint import load_checkpoint
from o2o_diffusion.training.finetune import GROUPS
from o2o_diffusion.training.folders import SETTINGS
from o2o_diffusion.training.loop import Finetuning


@dataclass(frozen=True)
class Config:
    """What to evaluate."""

    run: Annotated[str | None, "folder of the run"] = None
    episodes: Annotated[int, "number of episodes"] = 50
    seed: Annotated[int, "of the evaluation environments"] = 0
    output: Annotated[str | None, "JSON file to write; null: print only"] = None


def evaluate(argv: list[str]) -> int:
    """Print the scores as JSON."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if config.run is None:
        raise InputError("nothing to evaluate: give run=<folder of a run>")
    folder = Path(config.run)
    if not (folder / SETTINGS).is_file():
        raise InputError(f"run={folder}: no {SETTINGS} there; expected the folder of a run")
    if config.output is not None:
        check_writable(Path(config.output).parent)
    components = compose(folder / SETTINGS, Finetuning.Config, GROUPS).components
    task = components["task"].build()
    learner = components["learner"].build(task.dataset.spec, seed=0)
    learner.load_state_dict(load_checkpoint(folder / "checkpoints")["learner"])
    torch.set_num_threads(1)
    evaluator = Evaluator(
        task.environment,
        task.dataset.observation_keys,
        episodes=config.episodes,
        seed=config.seed,
        references=task.scores,
    )
    result = evaluator(learner)
    print(json.dumps(result.summary(), indent=2))
    if config.output is not None:
        Path(config.output).write_text(json.dumps(result.summary() | {"returns": result.returns}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    main(evaluate)
