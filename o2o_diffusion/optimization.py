"""Gradient steps averaged over processes, and Polyak averaging of target networks."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import average, num_processes
from o2o_diffusion.errors import InputError


class Optimizer:
    """Adam for one group of parameters; every gradient step in the package goes through `step`.

    A loss is differentiated with respect to these parameters only, so it cannot affect another network. Gradients are
    averaged over processes explicitly, because learners also call methods other than `forward`.
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
        """Take one gradient step on `loss` ([], or [K] for stacked seeds, which is summed); returns it detached."""
        gradients = torch.autograd.grad(loss.sum(), self.parameters)
        average(gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()  # it keeps copies of the old weights until the autocast context exits
        return loss.detach()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate for the next steps."""
        for group in self.adam.param_groups:
            group["lr"] = learning_rate

    def state_dict(self) -> dict:
        """Adam's moments and learning rates."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore a copy of `state`, because Adam would share its tensors."""
        self.adam.load_state_dict(copy.deepcopy(state))


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)  # pyright: ignore[reportPrivateImportUsage]


def batch_part(size: int, setting: str) -> int:
    """Rows per process for a batch of `size` rows; equal on all processes, because gradients are averaged.

    Raises InputError naming `setting` if the rows can't be divided evenly among the processes.
    """
    if size % num_processes():
        raise InputError(f"setting '{setting}': {size} can't be divided among {num_processes()} processes")
    return size // num_processes()
