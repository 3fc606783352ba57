"""Gradient steps averaged over processes, and Polyak averaging of target networks."""

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import average, num_processes
from o2o_diffusion.errors import InputError

FOUND: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
"""See `parameters_of`."""


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
        self.means = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.squares = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    def step(self, loss: Tensor) -> Tensor:
        """Take one gradient step on `loss` ([], or [K] for stacked seeds, which is summed); returns it detached.

        A step with a gradient that is not finite changes no weights, and its loss is returned as NaN.
        """
        gradients = torch.autograd.grad(loss if loss.ndim == 0 else loss.sum(), self.parameters)
        gradients = [gradient.contiguous() for gradient in gradients]  # the fused kernel ignores strides
        average(gradients)
        fault = guard(gradients, stacked=loss.ndim > 0)
        if self.max_grad_norm is not None:
            clip(gradients, self.max_grad_norm, loss.ndim)
        self._descend(gradients, skip=fault.isnan().all().float())
        torch.clear_autocast_cache()  # it keeps copies of the old weights until the autocast context exits
        return loss.detach() + fault

    @torch.no_grad()
    def _descend(self, gradients: list[Tensor], skip: Tensor) -> None:
        """One step of Adam, which its kernel omits where `skip` is 1, without a branch of the host."""
        torch._foreach_add_(self.steps, 1 - skip)  # pyright: ignore[reportPrivateImportUsage]
        fixed = {"weight_decay": 0.0, "eps": 1e-8, "amsgrad": False, "maximize": False, "found_inf": skip}
        rates = {"lr": self.learning_rate, "beta1": self.betas[0], "beta2": self.betas[1]}
        moments = self.means, self.squares, [], self.steps
        torch._fused_adam_(self.parameters, gradients, *moments, **rates, **fixed)  # pyright: ignore[reportPrivateImportUsage]

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
def guard(gradients: list[Tensor], *, stacked: bool) -> Tensor:
    """0 where gradients are finite, else NaN, without waiting for the device: [], or [K] for `stacked` seeds.

    The gradients [K, ...] of stacked seeds with NaN are set to 0 in place, so that they cannot reach their weights.
    """
    fault = 0.0 * torch.stack(torch._foreach_norm(gradients)).sum()  # pyright: ignore[reportPrivateImportUsage]
    if not stacked or (fault.device.type == "cpu" and not fault.isnan()):  # the host need not wait for a CPU
        return fault
    fault = 0.0 * torch.stack([gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in gradients]).sum(0)
    for gradient in gradients:
        is_finite = fault.isfinite().view(-1, *[1] * (gradient.ndim - 1))
        gradient.copy_(torch.where(is_finite, gradient, 0.0))
    return fault


@torch.no_grad()
def clip(gradients: Sequence[Tensor], max_norm: float, axes: int = 0) -> None:
    """Scale `gradients` together, in place, to a norm of at most `max_norm`, each seed's along the first `axes`."""
    flat = [gradient.view(*gradient.shape[:axes], -1) for gradient in gradients]
    norm = torch.stack([gradient.norm(dim=-1) for gradient in flat]).norm(dim=0)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in flat:
        gradient.mul_(scale[..., None])


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, for every parameter."""
    torch._foreach_lerp_(parameters_of(target), parameters_of(source), tau)  # pyright: ignore[reportPrivateImportUsage]


def parameters_of(module: nn.Module) -> list[Tensor]:
    """The parameters of `module`, found once, because a search through its parts takes longer than a small product."""
    if module not in FOUND:
        FOUND[module] = list(module.parameters())
    return FOUND[module]


def batch_part(size: int, setting: str) -> int:
    """Rows per process for a batch of `size` rows; equal on all processes, because gradients are averaged.

    Raises InputError naming `setting` if the rows can't be divided evenly among the processes.
    """
    if size % num_processes():
        raise InputError(f"setting '{setting}': {size} can't be divided among {num_processes()} processes")
    return size // num_processes()
