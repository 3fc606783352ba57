"""Read flat tables of transitions (D4RL HDF5, or .npz files with the same keys) and split them into episodes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from o2o_diffusion.data.hdf5 import check_own_content
from o2o_diffusion.data.validation import check_booleans, check_finite, check_real, checked_episode
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.types import Episode, TransitionSpec

REQUIRED = ("observations", "actions", "rewards", "terminals", "timeouts")
FILES = (".hdf5", ".h5", ".npz")
KNOWN = (*REQUIRED, "next_observations")
IGNORED = ("infos", "metadata")
"""Other keys of D4RL files, not needed for transitions."""
GAP = 1e-6
"""Largest difference between a row's next observation and the next row's observation within an episode."""

logger = logging.getLogger(__name__)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a table by key, [rows, ...] each; raises InputError if it is damaged or keys are missing.

    `timeouts` is required: without it, a time limit looks like a termination.
    """
    try:
        table = _read_npz(path) if path.suffix == ".npz" else _read_hdf5(path)
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise InputError(f"{path} cannot be read: {error}") from error
    missing = [key for key in REQUIRED if key not in table]
    if missing:
        raise InputError(
            f"{path} has no {', '.join(missing)}; a table needs {', '.join(REQUIRED)} and may have next_observations"
        )
    rows = len(table["rewards"]) if table["rewards"].ndim else 0
    for key, array in table.items():
        if array.ndim not in ((2,) if key in ("observations", "next_observations", "actions") else (1,)):
            hint = "; discrete actions are not supported" if key == "actions" else ""
            raise InputError(f"{path}: {key} have shape {list(array.shape)}, expected [{rows}, width]{hint}")
        if len(array) != rows:
            raise InputError(f"{path}: {key} have {len(array)} rows, rewards have {rows}")
        if key in ("terminals", "timeouts"):
            check_booleans(f"{path}: {key}", array)
        else:
            check_real(f"{path}: {key}", array)
    if "next_observations" in table:
        check_finite(f"{path}: next_observations", table["next_observations"])
    return table


def check_columns(name: str) -> None:
    """Raise InputError if `name` is a table file with an unknown column, e.g. a misspelled one."""
    path = Path(name).expanduser()
    if path.suffix not in FILES or not path.is_file():
        return
    try:
        columns = _columns(path)
    except Exception as error:  # damaged files raise many kinds of exceptions
        raise InputError(f"{path} cannot be read: {error}") from error
    unknown = [column for column in columns if column.partition("/")[0] not in (*KNOWN, *IGNORED)]
    if unknown:
        known = ", ".join(KNOWN)
        raise InputError(f"{path}: unknown column '{unknown[0]}'{nearest(unknown[0], KNOWN)}; known are {known}")


def split_table(name: str, table: dict[str, np.ndarray]) -> tuple[tuple[Episode, ...], TransitionSpec]:
    """Split a table into episodes at terminals, at timeouts, and before rows that do not continue the previous row.

    An episode is terminated by a terminal that is not a timeout. Without `next_observations`, the last transition of
    an episode that did not terminate has no next observation and is dropped; if it did terminate, the last
    observation replaces the unknown next one, which no target reads. One warning reports both cases.
    """
    observations, following = table["observations"], table.get("next_observations")
    timeouts = table["timeouts"].astype(bool)
    terminals = table["terminals"].astype(bool) & ~timeouts
    ends = terminals | timeouts
    if following is not None:
        ends[:-1] |= (np.abs(following[:-1] - observations[1:]) > GAP).any(axis=1)
    ends[-1:] = True
    stops = np.flatnonzero(ends) + 1
    spec = TransitionSpec(observations.shape[1], table["actions"].shape[1])
    episodes, num_dropped = [], 0
    for number, (start, stop) in enumerate(zip(np.append(0, stops[:-1]), stops, strict=True)):
        terminated, rows = bool(terminals[stop - 1]), slice(start, stop)
        if following is not None:
            last = following[stop - 1 : stop]
        elif terminated:
            last = observations[stop - 1 : stop]
        else:
            last, rows = observations[stop - 1 : stop], slice(start, stop - 1)
            num_dropped += 1
        if rows.stop > rows.start:
            states = np.concatenate([observations[rows], last])
            where = f"{name}: episode {number} (from row {start})"
            arrays = (states, table["actions"][rows], table["rewards"][rows])
            episodes.append(checked_episode(where, *arrays, terminated=terminated, spec=spec))
    if following is None:
        logger.warning(
            "%s has no next_observations: the last transition of %d episodes that did not terminate is dropped, and "
            "in %d that did, the last observation is used as the next one",
            *(name, num_dropped, len(stops) - num_dropped),
        )
    return tuple(episodes), spec


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in (*REQUIRED, "next_observations") if key in file}


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    check_own_content(path)
    with h5py.File(path, "r") as file:
        return {key: np.asarray(file[key]) for key in (*REQUIRED, "next_observations") if key in file}


def _columns(path: Path) -> list[str]:
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as file:
            return list(file.files)
    import h5py

    with h5py.File(path, "r") as file:
        return list(file)
