"""Train a generator alone, on any dataset, and save it to a folder that any process can load."""

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.training.train_generator import GROUPS, GeneratorTraining


def train_generator(argv: list[str]) -> int:
    """Train on the task's dataset, with a second one as online rows if given; `--resume [auto|DIR]` resumes."""
    flags = {"resume": "continue an interrupted training: the generator's folder, or auto for the newest"}
    settings, arguments = command_line(__doc__, "train_generator.yaml", GeneratorTraining.Config, GROUPS, argv, flags)
    if settings is None:
        return GeneratorTraining.resume(arguments.resume, arguments.overrides).execute()
    return GeneratorTraining(settings).execute()


if __name__ == "__main__":
    main(train_generator)
