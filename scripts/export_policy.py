"""Export the actors of a SAC run's checkpoints as behaviours that `scripts/record.py` can use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.environments.behaviors.policy import FOLDER, save_policy
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import compose
from o2o_diffusion.training.checkpoint import checkpoints, load_checkpoint
from o2o_diffusion.training.finetune import GROUPS
from o2o_diffusion.training.folders import SETTINGS
from o2o_diffusion.training.loop import Finetuning


@dataclass(frozen=True)
class Config:
    """Which run, and under which name."""

    run: Annotated[str | None, "folder of a SAC run that kept its checkpoints (keep_checkpoints=0)"] = None
    name: Annotated[str | None, "folder under the packaged policies, such as halfcheetah"] = None
    command: Annotated[str, "the command that made the run, kept with the policies"] = ""


def export(argv: list[str]) -> int:
    """Write `<name>/step_<environment steps>.safetensors` for every checkpoint."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if config.run is None or config.name is None:
        raise InputError("give run=<folder of a SAC run> and name=<folder of the policies>")
    components = compose(Path(config.run) / SETTINGS, Finetuning.Config, GROUPS).components
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
    """A tanh-Gaussian actor's tensors under the names of a policy file; its last layer holds mean and log_std."""
    last = {kind: actor[f"mlp.layers.{num_hidden}.{kind}"].chunk(2) for kind in ("weight", "bias")}
    tensors = {f"trunk.{k}.{kind}": actor[f"mlp.layers.{k}.{kind}"] for k in range(num_hidden) for kind in last}
    for part, name in enumerate(("mean", "log_std")):
        tensors |= {f"{name}.{kind}": halves[part] for kind, halves in last.items()}
    statistics = {"observation_mean": "normalizer.mean", "observation_std": "normalizer.std"}
    return tensors | {name: actor[key] for name, key in statistics.items()}


if __name__ == "__main__":
    main(export)
