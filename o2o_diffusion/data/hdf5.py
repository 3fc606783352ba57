"""HDF5 files of others: a dataset in them may be stored anywhere on the disk, so that reading it reads other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from o2o_diffusion.errors import InputError


def check_own_content(path: Path) -> None:
    """Raise InputError if anything in the HDF5 file `path` is stored in another file, OSError if it can't be read.

    External links, external storage and virtual datasets are refused; none of them is followed.
    """
    import h5py

    with h5py.File(path, "r") as file:

        def outside(name: str, link: Any) -> str | None:
            if isinstance(link, h5py.ExternalLink):
                return f"'{name}' is a link to the file {link.filename}"
            if isinstance(link, h5py.HardLink) and isinstance(item := file[name], h5py.Dataset):
                if item.external:
                    return f"'{name}' is stored in the file {item.external[0][0]}"
                if item.is_virtual:
                    return f"'{name}' is a view of other datasets"
            return None

        found = file.visititems_links(outside)
    if found is not None:
        raise InputError(f"{path}: {found}; a dataset must hold its own data")
