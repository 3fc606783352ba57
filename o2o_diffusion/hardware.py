"""What this machine does fast and exactly: the matrix-product route and the number of threads."""

import os
import time

import torch

from o2o_diffusion.distributed import num_processes

MAX_RELATIVE_ERROR = 2e-6
"""Of a product of 256 terms against float64: true float32 stays below, bf16 (4e-3) and TF32 (5e-4) do not."""


def choose_matmul() -> str:
    """Set the faster float32 matrix-product route that is still true float32, and return its name.

    On a CPU, precision "medium" sends products to oneDNN, which on some processors is twice as fast and exact, and on
    others computes in bf16: hence the probe. On an accelerator the default "highest" stays.
    """
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_available():
        return "highest"
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    seconds = {"highest": float("inf"), "medium": float("inf")}
    for _ in range(15):  # in turns, so that what else the machine does at a moment hits both: a seed keeps its route
        for precision in seconds:
            torch.set_float32_matmul_precision(precision)
            seconds[precision] = min(seconds[precision], _seconds(a, b))
    error = float(((a @ b).double() - exact).norm() / exact.norm())  # of "medium", the last one set
    wins = error < MAX_RELATIVE_ERROR and seconds["medium"] < 0.95 * seconds["highest"]
    choice = "medium" if wins else "highest"
    torch.set_float32_matmul_precision(choice)
    return choice


def set_threads(threads: int) -> int:
    """Use `threads` threads in this process, or with 0 an equal part of the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // num_processes())
    torch.set_num_threads(threads)
    return threads


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    for _ in range(5):
        torch.mm(a, b)
    return time.perf_counter() - start
