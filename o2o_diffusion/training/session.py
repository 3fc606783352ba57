"""Process setup of a run: number of processes, precision, threads, matmul precision, signals."""

import gc
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from o2o_diffusion.distributed import broadcast_bool, num_processes
from o2o_diffusion.errors import InputError

SEEDS = ("learner", "generator", "sampler", "environment", "evaluation")
EXPLORATION_OFFSET = 2_000_003
"""Offset from the learner's seed to the seed of exploration, so that their random streams differ."""
POLL_INTERVAL = 64
"""Ticks between polls for a signal if there are several processes, because each poll costs a broadcast."""


MATMULS = ("auto", "highest", "medium")
MAX_RELATIVE_ERROR = 2e-6
"""Error of a 256-term product against float64: float32 stays below; bf16 (4e-3) and TF32 (5e-4) exceed it."""


def set_matmul(matmul: str) -> str:
    """Set the float32 matmul precision and return its name; "auto" chooses by exactness, not by speed.

    On a CPU, "medium" uses oneDNN, which is faster on many processors but computes in bf16 on some. "auto" is "medium"
    if its products are as exact as true float32, else "highest", so that a run's numbers don't depend on timings. On an
    accelerator, "auto" is "highest". Raises InputError for other names.
    """
    if matmul not in MATMULS:
        raise InputError(f"setting 'matmul': '{matmul}' is not one of {', '.join(MATMULS)}")
    if matmul == "auto":
        matmul = "highest" if torch.cuda.is_available() or matmul_error("medium") > MAX_RELATIVE_ERROR else "medium"
    torch.set_float32_matmul_precision(matmul)
    return matmul


def matmul_error(precision: str) -> float:
    """Relative error of a 256 x 256 float32 product at `precision` against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact, before = a.double() @ b.double(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    error = float(((a @ b).double() - exact).norm() / exact.norm())
    torch.set_float32_matmul_precision(before)
    return error


def set_threads(threads: int) -> int:
    """Set the number of threads of this process and return it; 0: available cores divided by processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // num_processes())
    torch.set_num_threads(threads)
    return threads


def processor() -> str:
    """Processor model, such as "AMD EPYC, AVX512"; the order of floating-point sums depends on it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


class Session:
    """Process setup of fine-tuning runs and of standalone generator training.

    `interrupted` is polled between ticks. Raises InputError if the precision or the tracker is not supported.
    """

    def __init__(self, threads: int, matmul: str, *, tracker: str | None = None, folder: Path | None = None):
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), log_with=tracker, project_dir=str(folder) if folder else None
        )
        if self.accelerator.mixed_precision not in ("no", "bf16"):
            raise InputError(f"mixed precision '{self.accelerator.mixed_precision}' is not supported; use bf16 or no")
        self.threads, self.matmul = set_threads(threads), set_matmul(matmul)
        self.interrupted: Callable[[], bool] = lambda: False

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process steps the environment, evaluates and writes."""
        return self.accelerator.is_main_process

    def autocast(self) -> AbstractContextManager:
        """Context manager of mixed precision."""
        return self.accelerator.autocast()

    def listen(self) -> None:
        """Start listening for SIGINT and SIGTERM."""
        self.interrupted = Interruption()

    def stop(self, ticks: int) -> bool:
        """Whether to save and exit after `ticks` ticks; the main process decides for all processes."""
        if num_processes() > 1 and ticks % POLL_INTERVAL:
            return False
        return broadcast_bool(self.interrupted(), self.device)

    def exit_code(self, *, finished: bool) -> int:
        """0 if finished, else 128 + the number of the signal that interrupted: 130 for SIGINT, 143 for SIGTERM."""
        return 0 if finished else 128 + getattr(self.interrupted, "number", signal.SIGINT)

    def plan(self) -> dict[str, str]:
        """Processes, precision and processor, for the header."""
        return {
            "processes": f"{num_processes()} on {self.device.type}, {self.threads} threads each, precision"
            f" {self.accelerator.mixed_precision}, matrix products '{self.matmul}'",
            "processor": processor(),
        }

    def choices(self) -> dict[str, Any]:
        """Settings resolved on this machine, to save with the run."""
        return {"threads": self.threads, "matmul": self.matmul}

    def close(self) -> None:
        """Wait for the other processes and close the trackers."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


class Interruption:
    """SIGINT and SIGTERM as a flag; the second signal raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested, self.number = False, signal.SIGINT
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return self.requested

    def _request(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.number = True, signal.Signals(number)


@contextmanager
def settled_heap() -> Iterator[None]:
    """Inside the context, the garbage collector does not search the objects that were made before it.

    Modules, settings and replays are many and stay, and an update makes enough objects to have them searched often.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def seed_of(seed: int, part: str) -> int:
    """Seed of one part of a run: extra draws in one part don't change the others."""
    return int(np.random.SeedSequence([seed, SEEDS.index(part)]).generate_state(1)[0] % 2**31)
