"""Pretrain a learner offline (`online_steps` is 0); fine-tuning runs start from it with `pretrained=<folder>`."""

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.training.finetune import GROUPS, Run
from o2o_diffusion.training.loop import Finetuning


def pretrain(argv: list[str]) -> int:
    """The offline phases of the main job, and nothing else."""
    flags = {"resume": "continue an interrupted run: its folder, or auto for the newest"}
    offline = [] if any(word.startswith("--resume") for word in argv) else ["online_steps=0"]  # also of an experiment
    settings, arguments = command_line(__doc__, "pretrain.yaml", Finetuning.Config, GROUPS, [*argv, *offline], flags)
    run = Run.resume(arguments.resume) if settings is None else Run(settings)
    return run.execute()


if __name__ == "__main__":
    main(pretrain)
