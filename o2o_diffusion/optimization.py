"""Gradient steps averaged over processes, and target averaging."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import average


class Optimizer:
    """Adam for one group of parameters; every gradient step of the package goes through `step`.

    A loss is differentiated with respect to these parameters only, so that it cannot leak into another network.
    Gradients are averaged over processes explicitly, because learners call much more than `forward`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        max_grad_norm: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        self.parameters = list(parameters)
        self.max_grad_norm = max_grad_norm
        self.adam = torch.optim.Adam(self.parameters, lr=learning_rate, betas=betas, fused=True)

    def step(self, loss: Tensor) -> Tensor:
        """Descend `loss` once; returns it detached."""
        gradients = torch.autograd.grad(loss, self.parameters)
        average(gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()  # holds copies of the old weights for as long as an autocast context lasts
        return loss.detach()

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the steps to come."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> dict:
        """Adam's moments and rates."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue from a copy of `state`; Adam alone would share its tensors."""
        self.adam.load_state_dict(copy.deepcopy(state))


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)  # pyright: ignore[reportPrivateImportUsage]
