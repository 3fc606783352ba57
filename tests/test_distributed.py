"""Random numbers of one process; those of several are in test_processes.py."""

import random

import numpy as np
import pytest
import torch

from o2o_diffusion import distributed
from o2o_diffusion.distributed import ShardedRng, broadcast_bool, seeded


@pytest.mark.parametrize("shape", [(), (3,)])
def test_integers_are_uniform_in_their_range(shape):
    numbers = ShardedRng(0).integers(7, 10_000, *shape)
    assert numbers.dtype == torch.int64 and numbers.shape == (10_000, *shape)
    shares = torch.bincount(numbers.flatten(), minlength=7) / numbers.numel()
    assert len(shares) == 7 and (shares - 1 / 7).abs().max() < 0.015
    assert (ShardedRng(0).integers(1, 100) == 0).all() and len(ShardedRng(0).integers(7, 0)) == 0


def test_integers_are_scaled_uniform_numbers_in_double_precision():
    for high in (1, 7, 10**6, 2**40):
        generator = torch.Generator().manual_seed(3)
        uniform = torch.rand(500, generator=generator, dtype=torch.float64)
        assert torch.equal(ShardedRng(3).integers(high, 500), (uniform * high).floor().long())


def test_each_integer_may_have_its_own_range():
    high = torch.tensor([1, 10, 1_000]).repeat_interleave(2_000)
    numbers = ShardedRng(0).integers(high, len(high))
    assert (numbers >= 0).all() and (numbers < high).all()
    assert numbers.view(3, -1).amax(1).tolist()[:2] == [0, 9]
    uniform = torch.rand(len(high), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(numbers, (uniform * high).floor().long())


def test_the_largest_uniform_number_stays_below_the_range():
    largest = 1 - torch.finfo(torch.float64).eps / 2
    for high in (1, 3, 7, 10**6 + 3, 2**31 - 1, 2**40 + 1):
        assert int(torch.tensor(largest, dtype=torch.float64) * high) == high - 1


@pytest.mark.parametrize("draw", ["normal", "uniform", "integers"])
def test_processes_keep_their_rows_of_one_draw(monkeypatch, draw):
    def numbers(size, **options):
        rng = ShardedRng(0, **options)
        return rng.integers(100, size, 3) if draw == "integers" else getattr(rng, draw)(size, 3)

    whole, alone = numbers(8), numbers(4)
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert torch.equal(numbers(4), whole[rank::2])
        assert torch.equal(numbers(4, shared=False), alone)


def test_a_restored_stream_goes_on_and_leaves_the_global_one_alone():
    rng, before = ShardedRng(0), torch.get_rng_state()
    rng.normal(5)
    state = rng.state_dict()
    expected = rng.normal(3, 2), rng.uniform(4), rng.integers(9, 5)
    other = ShardedRng(1)
    other.load_state_dict(state)
    assert all(map(torch.equal, (other.normal(3, 2), other.uniform(4), other.integers(9, 5)), expected))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_restores_the_global_state():
    torch.manual_seed(5)
    before, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].tolist())
    with seeded(0):
        first = torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert others == (random.getstate(), np.random.get_state()[1].tolist())
    torch.rand(7)
    with seeded(0):
        assert torch.equal(torch.randn(3), first)
    before = torch.get_rng_state()
    with pytest.raises(OSError), seeded(1):
        torch.randn(3)
        raise OSError
    assert torch.equal(torch.get_rng_state(), before)


def test_the_only_process_decides_for_itself():
    assert broadcast_bool(True) is True and broadcast_bool(False) is False


def test_tensors_are_averaged_over_processes_in_place(monkeypatch):
    others = torch.tensor([3.0, 3.0, 3.0, 3.0, 7.0])
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda tensor: tensor.add_(others))
    tensors = [torch.ones(2, 2), torch.tensor(1.0)]
    distributed.average(tensors)
    assert tensors[0].tolist() == [[2.0, 2.0], [2.0, 2.0]] and tensors[1] == 4
