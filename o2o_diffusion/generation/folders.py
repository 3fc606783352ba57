"""Where a generator in the making lies: its settings and checkpoints in `<output>.training`, until it is complete."""

from pathlib import Path

from o2o_diffusion.checkpoint import check_writable
from o2o_diffusion.errors import InputError
from o2o_diffusion.folders import SETTINGS

DEFAULT = Path("generators")
SUFFIX = ".training"


def new_output(output: str | None, name: str) -> Path:
    """The folder of a new generator, not made yet; raises InputError when it can't be made, or is in use."""
    folder = Path(output) if output else DEFAULT / name
    check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"output '{folder}' is not empty; choose another folder")
    if training_of(folder).exists():
        raise InputError(f"output '{folder}' is in the making; continue with --resume {folder}, or choose another")
    return folder


def training_of(output: Path) -> Path:
    """Where the training of the generator `output` lies."""
    return output.with_name(output.name + SUFFIX)


def output_of(training: Path) -> Path:
    """The folder of the generator whose training lies in `training`."""
    return training.with_name(training.name.removesuffix(SUFFIX))


def find_training(where: str) -> Path:
    """The folder of the interrupted training of the generator `where`, or with "auto" of the newest one."""
    if where == "auto":
        found = [path.parent for path in DEFAULT.glob(f"*{SUFFIX}/checkpoints")]
        if not found:
            raise InputError(f"--resume auto: no interrupted training under {DEFAULT}/")
        return max(found, key=lambda path: (path / "checkpoints").stat().st_mtime)
    folder = Path(where) if where.endswith(SUFFIX) else training_of(Path(where))
    if not (folder / SETTINGS).is_file():
        raise InputError(f"--resume {where}: no interrupted training of a generator, expected {folder / SETTINGS}")
    return folder
