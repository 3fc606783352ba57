"""Threads, matrix products and the kind of processor: what decides the last digits of a run on a machine."""

import os
import platform
import signal
from pathlib import Path
from typing import Any

import torch

from o2o_diffusion.distributed import num_processes
from o2o_diffusion.errors import InputError

MATMULS = ("auto", "highest", "medium")
MAX_RELATIVE_ERROR = 2e-6
"""Of a product of 256 terms against float64: true float32 stays below, bf16 (4e-3) and TF32 (5e-4) do not."""


def set_matmul(matmul: str) -> str:
    """Set the float32 matrix-product precision `matmul` and return its name; "auto" chooses by exactness alone.

    On a CPU, "medium" sends products to oneDNN, which is faster on many processors; on some it computes in bf16. "auto"
    takes it where its products are those of true float32, else "highest", so that no timing decides a run's numbers. On
    an accelerator "auto" is "highest". Raises InputError for another name.
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
    """Use `threads` threads in this process; 0: an equal part of the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // num_processes())
    torch.set_num_threads(threads)
    return threads


def processor() -> str:
    """The kind of processor, such as "AMD EPYC, AVX512": sums are taken in another order on another kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


class Interruption:
    """Ctrl-C and SIGTERM ask the run to save and leave; the second one leaves at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        """Whether the run should leave."""
        return self.asked

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
