"""Where runs lie: their folders, and the files by which one is known."""

from pathlib import Path

from o2o_diffusion.checkpoint import check_writable
from o2o_diffusion.errors import InputError

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
