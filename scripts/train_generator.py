"""Train a generator alone, from any dataset, and save it as a folder that a fresh process can load."""

from o2o_diffusion.config import command_line, main
from o2o_diffusion.generation import GeneratorTraining


def train_generator(argv: list[str]) -> int:
    """One refresh on the task's dataset, with rows of another dataset as online rows where one is given."""
    settings, _ = command_line(__doc__, "train_generator.yaml", GeneratorTraining.Config, ("task", "generator"), argv)
    return GeneratorTraining(settings).execute()


if __name__ == "__main__":
    main(train_generator)
