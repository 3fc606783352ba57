"""Sample rows from a saved generator and write them to a file or a Minari dataset."""

import sys
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.training.generate import generate_file


@dataclass(frozen=True)
class Config:
    """Rows to sample, and their destination."""

    generator: Annotated[str | None, "folder of a saved generator, or its Hugging Face Hub id"] = None
    num_samples: Annotated[int, "number of rows to sample"] = 100_000
    label: Annotated[str, "online or offline"] = "online"
    dataset: Annotated[str | None, "real dataset, for a generator that starts from real rows (start_sigma)"] = None
    output: Annotated[
        str | None, ".npz, .hdf5 (D4RL's columns), .safetensors, or the id of a new Minari dataset (namespace/name-v0)"
    ] = None
    seed: Annotated[int, "seed of the noise", Ge(0)] = 0


def generate(argv: list[str]) -> int:
    """Load the generator, sample rows, and write them."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    path, count = generate_file(
        config.generator, config.num_samples, config.label, config.output, dataset=config.dataset, seed=config.seed
    )
    if count < config.num_samples:
        print(f"warning: {config.num_samples - count:,} rows were not finite and are left out", file=sys.stderr)
    print(f"wrote {count:,} rows to {path}")
    return 0


if __name__ == "__main__":
    main(generate)
