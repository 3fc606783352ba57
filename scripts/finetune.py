"""Fine-tune a policy online from an offline dataset: pretrain, generate, fine-tune on the mixture, evaluate."""

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.seeds import resume, start


def finetune(argv: list[str]) -> int:
    """Start a run, or resume one with `--resume [auto|DIR]`."""
    flags = {"resume": "continue an interrupted run: its folder, or auto for the newest"}
    settings, arguments = command_line(__doc__, "finetune.yaml", Loop.Config, GROUPS, argv, flags)
    run = resume(arguments.resume, arguments.overrides) if settings is None else start(settings)
    return run.execute()


if __name__ == "__main__":
    main(finetune)
