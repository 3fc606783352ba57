"""Gradient steps averaged over processes, and Polyak averaging of target networks."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from o2o_diffusion.distributed import average, num_processes
from o2o_diffusion.errors import InputError


class Optimizer:
    """Adam for one group of parameters; every gradient step in the package goes through `step`.

    A loss is differentiated with respect to these parameters only, so it cannot affect another network. Gradients are
    averaged over processes explicitly, because learners also call methods other than `forward`. The state has the form
    of torch's Adam; it is created at once, so that stacked seeds can share it.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        *,
        max_grad_norm: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        self.parameters: list[Tensor] = list(parameters)
        self.learning_rate = learning_rate
        self.max_grad_norm, self.betas = max_grad_norm, betas
        self.means, self.squares = ([torch.zeros_like(p, requires_grad=False) for p in self.parameters] for _ in "ms")
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def step(self, loss: Tensor) -> Tensor:
        """Take one gradient step on `loss` ([], or [K] for stacked seeds, which is summed); returns it detached."""
        gradients = torch.autograd.grad(loss.sum(), self.parameters)
        gradients = [gradient.contiguous() for gradient in gradients]  # the fused kernel ignores strides
        average(gradients)
        if self.max_grad_norm is not None:
            clip(gradients, self.max_grad_norm)
        self._descend(gradients)
        torch.clear_autocast_cache()  # it keeps copies of the old weights until the autocast context exits
        return loss.detach()

    @torch.no_grad()
    def _descend(self, gradients: list[Tensor]) -> None:
        (beta1, beta2), fixed = self.betas, {"amsgrad": False, "maximize": False, "weight_decay": 0.0, "eps": 1e-8}
        moments = self.means, self.squares, [], self.steps
        adam(self.parameters, gradients, *moments, lr=self.learning_rate, beta1=beta1, beta2=beta2, fused=True, **fixed)

    def reset(self) -> None:
        """Forget all gradients so far."""
        for tensor in (*self.means, *self.squares, *self.steps):
            tensor.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and learning rate."""
        names = ("step", "exp_avg", "exp_avg_sq")
        moments = zip(self.steps, self.means, self.squares, strict=True)
        state = {number: dict(zip(names, tensors, strict=True)) for number, tensors in enumerate(moments)}
        return {"state": state, "param_groups": [{"lr": self.learning_rate}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a copy of `state`."""
        self.reset()  # of a state saved before the first step
        for number, saved in state["state"].items():
            self.steps[number].copy_(saved["step"])
            self.means[number].copy_(saved["exp_avg"])
            self.squares[number].copy_(saved["exp_avg_sq"])
        self.learning_rate = state["param_groups"][0]["lr"]


@torch.no_grad()
def clip(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale `gradients` together, in place, to a norm of at most `max_norm`."""
    scale = (max_norm / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)


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
