"""Files and folders that are complete or absent."""

import os
from pathlib import Path

from o2o_diffusion.errors import InputError


def check_writable(folder: Path) -> None:
    """Raise InputError when `folder` is not a folder that can be made and written to; makes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"output '{folder}' can't be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"output '{folder}' can't be written: no permission in {existing}")
