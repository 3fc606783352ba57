"""A network as a denoiser: EDM's preconditioning (Karras et al., 2022), https://arxiv.org/abs/2206.00364, table 1."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`denoise(x, sigma) -> x0`: expectation of the clean rows [B, D], given rows x with noise of standard deviation sigma.

sigma is a scalar or [B, 1]. Solvers depend on nothing else; guidance wraps one denoiser into another.
"""


class Coefficients(NamedTuple):
    """The four factors of EDM's preconditioning, each with the shape of sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def coefficients(sigma: Tensor, sigma_data: float = 1.0) -> Coefficients:
    """EDM's factors at `sigma` > 0 for data of standard deviation `sigma_data`."""
    variance = sigma**2 + sigma_data**2
    return Coefficients(
        c_skip=sigma_data**2 / variance,
        c_out=sigma * sigma_data / variance.sqrt(),
        c_in=1 / variance.sqrt(),
        c_noise=sigma.log() / 4,
    )


def precondition(network: Callable[..., Tensor], sigma_data: float = 1.0) -> Callable[..., Tensor]:
    """`denoise(x, sigma, *conditions)` = c_skip x + c_out network(c_in x, c_noise, *conditions), in float32.

    Under autocast only the network runs in lower precision.
    """

    def denoise(x: Tensor, sigma: Tensor, *conditions: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = coefficients(sigma, sigma_data)
        return c_skip * x + c_out * network(c_in * x, c_noise.reshape(-1), *conditions).float()

    return denoise
