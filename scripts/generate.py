"""Write rows drawn from a saved generator to a file."""

from dataclasses import dataclass
from typing import Annotated

from o2o_diffusion.config import command_line, main
from o2o_diffusion.generation import generate_file


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    generator: Annotated[str | None, "folder of a saved generator"] = None
    num_samples: Annotated[int, "rows to draw"] = 100_000
    label: Annotated[str, "online or offline"] = "online"
    output: Annotated[str | None, "file to write: .npz, .hdf5 (D4RL's columns) or .safetensors"] = None
    seed: Annotated[int, "of the noise"] = 0


def generate(argv: list[str]) -> int:
    """Load, draw, write."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    path, count = generate_file(config.generator, config.num_samples, config.label, config.output, seed=config.seed)
    print(f"wrote {count:,} rows to {path}")
    return 0


if __name__ == "__main__":
    main(generate)
