import os
import time

import pytest
import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.training.session import MAX_RELATIVE_ERROR, matmul_error, processor, set_matmul, set_threads


@pytest.fixture(autouse=True)
def restore_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_the_chosen_precision_is_true_float32():
    chosen = set_matmul("auto")
    assert chosen == torch.get_float32_matmul_precision()
    assert matmul_error(chosen) < MAX_RELATIVE_ERROR


def test_no_clock_is_read_to_choose(monkeypatch):
    for name in ("perf_counter", "monotonic", "process_time", "time"):
        monkeypatch.setattr(time, name, lambda: pytest.fail("a timing decides the numbers of a run"))
    set_matmul("auto")


@pytest.mark.parametrize(("error", "chosen"), [(1e-7, "medium"), (4e-3, "highest")])
def test_exactness_alone_decides(monkeypatch, error, chosen):
    monkeypatch.setattr("o2o_diffusion.training.session.matmul_error", lambda precision: error)
    assert set_matmul("auto") == (chosen if not torch.cuda.is_available() else "highest")


def test_a_named_precision_is_taken_and_another_word_is_refused():
    assert set_matmul("highest") == torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(InputError, match="not one of auto, highest, medium"):
        set_matmul("fast")


def test_the_processor_is_named_with_its_vector_instructions():
    assert processor().endswith(torch.backends.cpu.get_cpu_capability())


def test_threads_are_as_asked_or_a_part_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    try:
        for processes, asked, expected in ((1, 3, 3), (1, 0, 6), (2, 0, 3), (8, 0, 1)):
            monkeypatch.setattr("o2o_diffusion.training.session.num_processes", lambda number=processes: number)
            assert set_threads(asked) == torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(1)
