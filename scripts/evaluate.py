"""Evaluate the policy in a run's latest checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.errors import InputError
from o2o_diffusion.storage import check_writable, save_json
from o2o_diffusion.training.folders import open_run


@dataclass(frozen=True)
class Config:
    """Settings of an evaluation."""

    run: Annotated[str | None, "run folder"] = None
    episodes: Annotated[int, "number of episodes", Ge(1)] = 50
    seed: Annotated[int, "seed of the evaluation environments", Ge(0)] = 0
    output: Annotated[str | None, "JSON file to write; null: print only"] = None


def evaluate(argv: list[str]) -> int:
    """Evaluate the policy and print the scores as JSON."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if config.run is None:
        raise InputError("nothing to evaluate: give run=<folder of a run>")
    folder = Path(config.run)
    saved = open_run(folder)
    if config.output is not None:
        check_writable(Path(config.output).parent)
    task = saved.settings.components["task"].build()
    torch.set_num_threads(1)
    evaluator = Evaluator(task.environment, episodes=config.episodes, seed=config.seed, references=task.scores)
    result = evaluator(saved.learner(task.spec))
    print(json.dumps(result.summary(), indent=2))
    if config.output is not None:
        save_json(Path(config.output), result.summary() | {"returns": result.returns})
    return 0


if __name__ == "__main__":
    main(evaluate)
