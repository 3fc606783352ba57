"""Pretrain a learner offline (`online_steps` is 0); fine-tuning runs start from it with `pretrained=<folder>`."""

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.seeds import resume, start


def pretrain(argv: list[str]) -> int:
    """Run only the offline phases of finetune.py."""
    flags = {"resume": "continue an interrupted run: its folder, or auto for the newest"}
    offline = [] if any(word.startswith("--resume") for word in argv) else ["online_steps=0"]  # also in experiments
    settings, arguments = command_line(__doc__, "pretrain.yaml", Loop.Config, GROUPS, [*argv, *offline], flags)
    run = resume(arguments.resume, arguments.overrides) if settings is None else start(settings)
    return run.execute()


if __name__ == "__main__":
    main(pretrain)
