"""Where runs lie: their folders, and the files by which one is known."""

from pathlib import Path

from o2o_diffusion.errors import InputError
from o2o_diffusion.storage import check_writable

SETTINGS, SUMMARY = "settings.yaml", "summary.json"


def new_folder(output: str | None, name: str) -> Path:
    """The folder of a new run, not made yet; raises InputError when it can't be, or already holds a run."""
    folder = Path(output) if output else _free(Path("runs") / name)
    if (folder / SETTINGS).exists():
        raise InputError(
            f"output '{folder}' already holds a run; choose another, or continue it with --resume {folder}"
        )
    check_writable(folder)
    return folder


def newest_unfinished() -> Path:
    """The newest run under runs/ that has a checkpoint and no summary."""
    found = [path.parent for path in Path("runs").glob(f"*/{SETTINGS}") if not (path.parent / SUMMARY).exists()]
    found = [folder for folder in found if (folder / "checkpoints").is_dir()]
    if not found:
        raise InputError("--resume auto: no interrupted run under runs/")
    return max(found, key=lambda folder: (folder / "checkpoints").stat().st_mtime)


def _free(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


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
