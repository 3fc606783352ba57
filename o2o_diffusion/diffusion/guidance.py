"""Guidance: a function from denoiser to denoiser, so that solvers know nothing of it."""

from collections.abc import Callable

import torch
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import Denoiser


def classifier_free(denoise: Callable[..., Tensor], *, label: int, null: int, scale: float) -> Denoiser:
    """(1 + scale) D(x, label) - scale D(x, null), both in one forward pass: eq. 7 of CFDG (arXiv 2508.06806).

    `denoise(x, sigma, labels)` is conditional. Guiding denoised rows is guiding the noise prediction, because one is
    affine in the other and the factors sum to 1. Scale 0 is plain conditional sampling and skips the null pass.
    `sigma` must be a scalar tensor, as solvers pass it.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        labels = torch.full((len(x),), label, device=x.device)
        if scale == 0:
            return denoise(x, sigma, labels)
        labels = torch.cat([labels, torch.full_like(labels, null)])
        conditional, unconditional = denoise(torch.cat([x, x]), sigma, labels).chunk(2)
        return (1 + scale) * conditional - scale * unconditional

    return guided
