"""Numbers that are not finite: D2, F13."""

import pytest
import torch
from torch import nn

from o2o_diffusion.optimization import Optimizer


def tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    parts = (*optimizer.parameters, *optimizer.means, *optimizer.squares, *optimizer.steps)
    return [tensor.detach().clone() for tensor in parts]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e30])  # the last one's square is infinite
def test_d2_f13_a_step_that_is_not_finite_changes_nothing_and_the_next_one_is_as_usual(max_grad_norm, number):
    torch.manual_seed(0)
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(network.state_dict())
    guarded, usual = (Optimizer(part.parameters(), 0.1, max_grad_norm=max_grad_norm) for part in (network, other))
    good, bad = torch.randn(8, 3), torch.randn(8, 3)
    bad[0, 0] = number
    for optimizer, part in ((guarded, network), (usual, other)):
        assert optimizer.step(part(good).square().mean()).isfinite()
    before = tensors(guarded)
    assert guarded.step(network(bad).square().mean()).isnan()
    assert all(map(torch.equal, before, tensors(guarded)))
    assert torch.equal(guarded.step(network(good).abs().mean()), usual.step(other(good).abs().mean()))
    assert all(map(torch.equal, tensors(guarded), tensors(usual)))


def test_d2_one_of_several_stacked_seeds_does_not_stop_the_others():
    weights = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    stacked = nn.Parameter(weights.clone())
    optimizer, factors = Optimizer([stacked], 0.1), torch.tensor([1.0, torch.nan, 2.0])
    loss = optimizer.step((stacked.square().flatten(1).mean(1)) * factors)
    assert loss.isnan().tolist() == [False, True, False] and torch.equal(stacked[1], weights[1])
    single = nn.Parameter(weights[2].clone())
    assert torch.equal(Optimizer([single], 0.1).step(2 * single.square().mean()), loss[2])
    torch.testing.assert_close(stacked[2], single, rtol=0, atol=1e-7)
    assert stacked.isfinite().all() and optimizer.means[0].isfinite().all() and optimizer.squares[0].isfinite().all()
