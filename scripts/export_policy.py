"""Export the actors in a SAC run's checkpoints as behaviors for `scripts/record.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.environments.behaviors.policy import FOLDER, save_policy
from o2o_diffusion.errors import InputError
from o2o_diffusion.training.checkpoint import checkpoints, load_checkpoint
from o2o_diffusion.training.folders import open_run


@dataclass(frozen=True)
class Config:
    """Run to export, and name of its policies."""

    run: Annotated[str | None, "folder of a SAC run with all checkpoints kept (keep_checkpoints=0)"] = None
    name: Annotated[str | None, "folder among the packaged policies, e.g. halfcheetah"] = None
    command: Annotated[str, "training command, stored with the policies"] = ""


def export(argv: list[str]) -> int:
    """Write `<name>/step_<environment steps>.safetensors` for every checkpoint."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if config.run is None or config.name is None:
        raise InputError("give run=<folder of a SAC run> and name=<folder of the policies>")
    components = open_run(Path(config.run)).settings.components
    task, hidden = components["task"].config, components["learner"].config.hidden
    for path in checkpoints(Path(config.run) / "checkpoints"):
        state = load_checkpoint(path.parent, path)
        metadata = {
            "environment": task.environment,
            "hidden": list(hidden),
            "activation": "relu",
            "env_steps": state["env_steps"],
            "command": config.command,
        }
        file = FOLDER / config.name / f"step_{state['env_steps']}.safetensors"
        save_policy(file, actor_tensors(state["learner"]["actor"], len(hidden)), metadata)
        print(file)
    return 0


def actor_tensors(actor: dict, num_hidden: int) -> dict:
    """Rename a tanh-Gaussian actor's tensors as in a policy file; the last layer is split into mean and log_std."""
    last = {kind: actor[f"mlp.layers.{num_hidden}.{kind}"].chunk(2) for kind in ("weight", "bias")}
    tensors = {f"trunk.{k}.{kind}": actor[f"mlp.layers.{k}.{kind}"] for k in range(num_hidden) for kind in last}
    for part, name in enumerate(("mean", "log_std")):
        tensors |= {f"{name}.{kind}": halves[part] for kind, halves in last.items()}
    statistics = {"observation_mean": "normalizer.mean", "observation_std": "normalizer.std"}
    return tensors | {name: actor[key] for name, key in statistics.items()}


if __name__ == "__main__":
    main(export)
