"""Denoising score matching as in EDM (Karras et al., 2022), https://arxiv.org/abs/2206.00364, section 5."""

import torch
import torch.nn.functional as F
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import Denoiser


def draw_sigma(normal: Tensor, p_mean: float = -1.2, p_std: float = 1.2) -> Tensor:
    """Noise levels with ln sigma ~ N(p_mean, p_std^2), from standard `normal` draws."""
    return (p_mean + p_std * normal).exp()


def loss_weight(sigma: Tensor, sigma_data: float = 1.0) -> Tensor:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2: weights the network's own loss equally at every level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoising_loss(denoise: Denoiser, x: Tensor, sigma: Tensor, noise: Tensor, sigma_data: float = 1.0) -> Tensor:
    """Weighted mean squared error of denoising `x + sigma * noise`; x and noise are [B, D], sigma [B, 1]."""
    error = denoise(x + sigma * noise, sigma) - x
    return (loss_weight(sigma, sigma_data) * error.square()).mean()


def draw_solver_sigma(uniform: Tensor, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Noise levels in [sigma_min, sigma_max], distributed as in the solvers (eq. 5 of EDM), from `uniform` draws."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + uniform * (high - low)) ** rho


def contrastive_loss(positives: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy of the positive among 1 + K, with logits -E: InfoNCE (arXiv 1807.03748), as in arXiv 2304.12824.

    `positives` [B] and `negatives` [B, K] are energies of independent rows from two densities p and q, each group
    noised at one level: the minimum is at E = -log(p(z) / q(z)) + a constant per level.
    """
    logits = -torch.cat([positives[:, None], negatives], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def contrastive_accuracy(positives: Tensor, negatives: Tensor) -> Tensor:
    """Fraction of positives [B] with the lowest energy of their group ([B, K] negatives); chance is 1 / (1 + K)."""
    return (positives < negatives.amin(1)).float().mean()
