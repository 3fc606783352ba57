"""Multilayer perceptrons, single or as an ensemble with one batched product per layer.

Every parameter may have a leading axis of K stacked seeds; inputs then have it as well.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.chain import relu_chain

RELU_GAIN = math.sqrt(2)


class Linear(nn.Linear):
    """An affine map: weight [..., out, in], bias [..., out]."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., B, in] -> [..., B, out]."""
        if self.weight.ndim == 2:
            return super().forward(input)
        return torch.baddbmm(self.bias.unsqueeze(-2), input, self.weight.mT)


class LayerNorm(nn.LayerNorm):
    """Layer normalization: weight and bias [..., dim]."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., B, dim] -> [..., B, dim]."""
        if self.weight.ndim == 1:
            return super().forward(input)
        return torch.addcmul(self.bias.unsqueeze(-2), F.layer_norm(input, input.shape[-1:]), self.weight.unsqueeze(-2))


class EnsembleLinear(nn.Module):
    """E parallel affine maps: weight [..., E, in, out], bias [..., E, 1, out]."""

    def __init__(self, ensemble_size: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(ensemble_size, 1, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """[..., 1, B, in] (the same for every member) or [..., E, B, in] -> [..., E, B, out]."""
        members = self.weight.shape[:-2]
        x = x.expand(*members, -1, -1).flatten(0, -3)
        return torch.baddbmm(self.bias.flatten(0, -3), x, self.weight.flatten(0, -3)).unflatten(0, members)


class EnsembleLayerNorm(nn.Module):
    """Layer normalization with separate scale and shift for each of E members."""

    def __init__(self, ensemble_size: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble_size, 1, dim))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., E, B, dim] -> [..., E, B, dim]."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


class MLP(nn.Module):
    """ReLU network with orthogonal weights (gain sqrt 2 on every layer, as in IQL's code) and zero biases.

    [..., B, input_dim] -> [..., B, output_dim], or [..., E, B, output_dim] if `ensemble_size` is given. Layer
    normalization follows hidden layers only, never the input: normalizing raw actions is unstable.
    """

    def __init__(
        self,
        input_dim: int,
        hidden: Sequence[int],
        output_dim: int,
        *,
        ensemble_size: int | None = None,
        layer_norm: bool = False,
        dropout: float = 0.0,
        output_gain: float = RELU_GAIN,
    ):
        super().__init__()
        widths = [input_dim, *hidden, output_dim]
        gains = [RELU_GAIN] * len(hidden) + [output_gain]
        self.layers = nn.ModuleList(
            orthogonal(linear(fan_in, fan_out, ensemble_size), gain)
            for fan_in, fan_out, gain in zip(widths[:-1], widths[1:], gains, strict=True)
        )
        self.norms = nn.ModuleList(norm(width, ensemble_size) if layer_norm else nn.Identity() for width in hidden)
        self.ensemble_size, self.dropout, self.is_plain = ensemble_size, dropout, not (layer_norm or dropout)

    def forward(
        self, x: Tensor, rng: ShardedRng | None = None, *, per_member: bool = False, constant: bool = False
    ) -> Tensor:
        """Apply dropout only if `rng` is given, so never in acting or evaluation.

        With `per_member`, each member of the ensemble has its own inputs [..., E, B, input_dim]. With `constant`,
        gradients with respect to the weights may be omitted.
        """
        x = x if self.ensemble_size is None or per_member else x.unsqueeze(-3)  # one input for all members
        if self.is_plain and not torch.is_autocast_enabled(x.device.type):
            return self.chain(x, constant=constant)
        *hidden, output = self.layers
        for layer, norm in zip(hidden, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
            if self.dropout and rng is not None:
                kept = rng.uniform(*x.shape) >= self.dropout
                x = x * kept / (1 - self.dropout)
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round values near 200 to integers
            return output(x.float())

    def chain(self, x: Tensor, *, constant: bool) -> Tensor:
        """The same without normalization and dropout."""
        layers: Any = self.layers
        parameters: list[Tensor] = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
        if constant:
            parameters = [tensor.detach() for tensor in parameters]
        if self.ensemble_size is None:
            parameters[1::2] = [bias if bias.ndim == 1 else bias.unsqueeze(-2) for bias in parameters[1::2]]
            return relu_chain(x, parameters, transposed=True)
        members = parameters[0].shape[:-2]
        x = x.expand(*members, -1, -1)
        if len(members) == 1:
            return relu_chain(x, parameters)
        return relu_chain(x.flatten(0, -3), [p.flatten(0, -3) for p in parameters]).unflatten(0, members)


def linear(fan_in: int, fan_out: int, ensemble_size: int | None) -> nn.Module:
    """One affine map or an ensemble of them."""
    return Linear(fan_in, fan_out) if ensemble_size is None else EnsembleLinear(ensemble_size, fan_in, fan_out)


def norm(width: int, ensemble_size: int | None) -> nn.Module:
    """Layer normalization for one network or an ensemble."""
    return LayerNorm(width) if ensemble_size is None else EnsembleLayerNorm(ensemble_size, width)


def orthogonal(layer: nn.Module, gain: float) -> nn.Module:
    """Initialize `layer` with orthogonal weights (separately for each ensemble member) and zero biases."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    for matrix in weight.data if weight.ndim == 3 else [weight.data]:
        nn.init.orthogonal_(matrix, gain)
    nn.init.zeros_(bias)
    return layer
