"""Denoising score matching as in EDM (Karras et al., 2022), https://arxiv.org/abs/2206.00364, section 5."""

from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import Denoiser


def draw_sigma(normal: Tensor, p_mean: float = -1.2, p_std: float = 1.2) -> Tensor:
    """Noise levels with ln sigma ~ N(p_mean, p_std^2) of standard `normal` numbers."""
    return (p_mean + p_std * normal).exp()


def loss_weight(sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: the network's own loss then weighs the same at every level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(denoise: Denoiser, x: Tensor, sigma: Tensor, noise: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Weighted mean squared error of denoising `x + sigma * noise`; x and noise are [B, D], sigma [B, 1]."""
    error = denoise(x + sigma * noise, sigma) - x
    return (loss_weight(sigma, sigma_data) * error.square()).mean()
