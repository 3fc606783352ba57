"""Affine maps with ReLU between them as one node of the autograd graph, because small networks are all overhead."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL = 100
"""Below this width oneDNN's fixed costs exceed those of a single product; both ways are exact in float32."""


def relu_chain(x: Tensor, parameters: Sequence[Tensor], *, transposed: bool = False) -> Tensor:
    """x, (weight, bias, weight, bias, ...) -> output, in float32.

    Inputs are [B, in] or [N, B, in], weights [in, out] or [N, in, out] (with `transposed`, [..., out, in]), biases
    [out] or [N, 1, out]. The products are those of separate layers.
    """
    if torch.is_grad_enabled():
        return ReluChain.apply(x, transposed, *parameters)
    return _layers(x, parameters, transposed)[-1]


class ReluChain(torch.autograd.Function):
    """`relu_chain` with gradients, and without second derivatives: asking for them raises RuntimeError."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transposed: bool, *parameters: Tensor) -> Tensor:
        """Apply the layers, keeping the input of each."""
        *inputs, output = _layers(x, parameters, transposed)
        ctx.save_for_backward(*inputs, *parameters[::2])
        ctx.transposed = transposed
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of x, weights and biases, each only if it is needed."""
        g, saved, needs, transposed = gradients[0], ctx.saved_tensors, ctx.needs_input_grad, ctx.transposed
        count, results, keeps = len(saved) // 2, [], g.ndim == 3
        product = torch.bmm if keeps else torch.mm
        precision = begin_products(saved[count])
        for number in range(count - 1, -1, -1):
            x, weight = saved[number], saved[count + number]
            if needs[2 + 2 * number]:
                results.append(g.sum(-2, keepdim=keeps))
                results.append(product(g.mT, x) if transposed else product(x.mT, g))
            else:
                results += [None, None]
            if number or needs[0]:
                g = product(g, weight if transposed else weight.mT)
            if number:
                g = torch.ops.aten.threshold_backward.default(g, x, 0)
        end_products(precision)
        return (g if needs[0] else None, None, *reversed(results))


def _layers(x: Tensor, parameters: Sequence[Tensor], transposed: bool) -> list[Tensor]:
    """The input of each layer, and the output."""
    affine, found = (torch.addmm if x.ndim == 2 else torch.baddbmm), [x]
    precision = begin_products(parameters[0])
    for number in range(0, len(parameters), 2):
        x, weight = found[-1].relu_() if number else x, parameters[number]
        found.append(affine(parameters[number + 1], x, weight.mT if transposed else weight))
    end_products(precision)
    return found


def begin_products(weight: Tensor) -> str:
    """Choose a way for the products with `weight`; returns the one before."""
    precision = torch.get_float32_matmul_precision()
    if weight.ndim == 2 and max(weight.shape) < SMALL:
        torch.set_float32_matmul_precision("highest")
    return precision


def end_products(precision: str) -> None:
    """Choose the way before."""
    torch.set_float32_matmul_precision(precision)
