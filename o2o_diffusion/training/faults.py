"""One policy for faults: one line says what happened and how to continue; the traceback is in the run's folder."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from o2o_diffusion.distributed import rank
from o2o_diffusion.errors import Fault, InputError, without_secrets
from o2o_diffusion.storage import save_text
from o2o_diffusion.training.checkpoint import newest_whole

ERRORS = "error.txt"


@contextlib.contextmanager
def reported(folder: Path, checkpoints: Path, resume: Path) -> Iterator[None]:
    """Turn any exception in the block but InputError into a Fault that names the newest whole checkpoint.

    `resume` is what `--resume` takes. The traceback is written to error.txt in `folder` by the main process.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        last = newest_whole(checkpoints)
        left = f"continue from {last.name} with --resume {resume}" if last else "no checkpoint was written"
        where = ""
        with contextlib.suppress(OSError):  # the fault may be a full disk
            if rank() == 0:
                save_text(folder / ERRORS, without_secrets(traceback.format_exc()))
                where = f"; traceback in {folder / ERRORS}"
        raise Fault(f"{reason(error)}; {left}{where}") from error


def reason(error: Exception) -> str:
    """The kind and the first line of an exception, in words for the common ones."""
    if isinstance(error, Fault):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return f"out of memory ({_line(error)})"
    return _line(error) if isinstance(error, OSError) else f"{type(error).__name__}: {_line(error)}"


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
