"""A chain of layers as one node of the graph equals its layers."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from o2o_diffusion.networks.chain import SMALL, relu_chain
from o2o_diffusion.networks.mlp import MLP


def layers(x, parameters, transposed):
    """The same layer by layer."""
    for number in range(0, len(parameters), 2):
        x = F.relu(x) if number else x
        weight = parameters[number].mT if transposed else parameters[number]
        x = x @ weight + parameters[number + 1]
    return x


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("leading", [(), (3,)])
def test_a_chain_and_its_gradients_equal_those_of_its_layers(leading, transposed):
    torch.manual_seed(0)
    widths, parameters = (4, 8, 6, 2), []
    for fan_in, fan_out in pairwise(widths):
        shape = (fan_out, fan_in) if transposed else (fan_in, fan_out)
        parameters.append(torch.randn(*leading, *shape, dtype=torch.float64, requires_grad=True))
        bias = (*leading, 1, fan_out) if leading else (fan_out,)
        parameters.append(torch.randn(bias, dtype=torch.float64, requires_grad=True))
    x = torch.randn(*leading, 5, 4, dtype=torch.float64, requires_grad=True)
    found, expected = relu_chain(x, parameters, transposed=transposed), layers(x, parameters, transposed)
    torch.testing.assert_close(found, expected)
    inputs = (x, *parameters)
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert torch.equal(relu_chain(x, parameters, transposed=transposed), found)


def test_constant_weights_have_no_gradient_but_inputs_do():
    mlp, x = MLP(4, (8,), 1, ensemble_size=2), torch.randn(5, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(mlp(x).sum(), x)
    (found,) = torch.autograd.grad(mlp(x, constant=True).sum(), x)
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(mlp(x, constant=True).sum(), list(mlp.parameters()))


@pytest.mark.parametrize("width", [SMALL - 1, SMALL])
def test_the_precision_of_products_is_the_same_afterwards(width):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    weight = torch.zeros(1, width, requires_grad=True)
    output = relu_chain(torch.zeros(1, 1), (weight, torch.zeros(width)))
    assert torch.get_float32_matmul_precision() == "medium"
    output.sum().backward()
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)
