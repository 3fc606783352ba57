"""Guidance: functions from denoiser to denoiser, invisible to the solvers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import Denoiser, coefficients


def classifier_free(denoise: Callable[..., Tensor], *, condition: Tensor, null: float, scale: float) -> Denoiser:
    """(1 + scale) D(x, condition) - scale D(x, null), both in one forward pass: eq. 7 of CFDG (arXiv 2508.06806).

    `denoise(x, sigma, condition)` is conditional; `condition` is [B], one per row. Guiding denoised rows is equivalent
    to guiding the noise prediction, because one is affine in the other and the factors sum to 1. Scale 0 is plain
    conditional sampling and skips the null pass. `sigma` must be a scalar tensor, as passed by the solvers.
    """
    both = torch.cat([condition, torch.full_like(condition, null)])

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if scale == 0:
            return denoise(x, sigma, condition)
        conditional, unconditional = denoise(torch.cat([x, x]), sigma, both).chunk(2)
        return (1 + scale) * conditional - scale * unconditional

    return guided


class Energy(NamedTuple):
    """One factor exp(-scale E(x)) of a tilted density.

    `energy` maps rows [B, D], and their noise level if they are noised, to [B] energies; its gradient moves only the
    columns in the mask `moves` ([D], bool).
    """

    energy: Callable[..., Tensor]
    moves: Tensor
    scale: float = 1.0


class GuidedRange(NamedTuple):
    """Limits of energy guidance: a range of noise levels, and a correction norm of at most `max_norm` sqrt(D) per row.

    Below the range, a solver that divides by c_out would amplify errors; above it, rows are pure noise. The limits are
    not in the papers.
    """

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    max_norm: float = 1.0

    def holds(self, sigma: Tensor) -> bool:
        """Whether the scalar `sigma` is in the range."""
        return self.sigma_min <= float(sigma) <= self.sigma_max

    def clip(self, corrections: Tensor) -> Tensor:
        """Clip the norm of each row of `corrections` [B, D]."""
        return torch.renorm(corrections, 2, 0, self.max_norm * corrections.shape[1] ** 0.5)


def noised_energy(network: Callable[[Tensor, Tensor], Tensor], sigma_data: float = 1.0) -> Callable[..., Tensor]:
    """`energy(x, sigma)` = network(c_in x, c_noise) [B]: the counterpart of `precondition` for energies."""

    def energy(x: Tensor, sigma: Tensor) -> Tensor:
        _, _, c_in, c_noise = coefficients(sigma, sigma_data)
        return network(c_in * x, c_noise.reshape(-1))

    return energy


def energy_guided(denoise: Denoiser, energies: Sequence[Energy], where: GuidedRange | None = None) -> Denoiser:
    """D(x, sigma) - sigma^2 sum_k scale_k grad E_k(x, sigma): samples follow p(x) exp(-sum_k scale_k E_k(x)).

    Exact for the noised energies E(z, sigma) = -log E[exp(-E(x)) | z], with the expectation over clean rows x of p
    given z (Lu et al., 2023, arXiv 2304.12824), because the score then changes by -grad E and D = z + sigma^2 score.
    The noised ratio of two densities learned by `contrastive_loss` is such an energy.
    """
    where = where or GuidedRange()

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        estimate = denoise(x, sigma)
        if not where.holds(sigma):
            return estimate
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            parts = [e.scale * e.energy(_only(leaf, e.moves), sigma).sum() for e in energies]
            gradient = torch.autograd.grad(torch.stack(parts).sum(), leaf)[0]
        return estimate - where.clip(sigma**2 * gradient)

    return guided if energies else denoise


def clean_energy_guided(
    denoise: Denoiser, energy: Energy, where: GuidedRange | None = None, *, sigma_data: float = 1.0
) -> Denoiser:
    """Guide by an energy E(x) defined for clean rows only, such as -log pi(a|s), at the denoised estimate.

    For a prior of variance sigma_data^2 per column, clean rows given z are N(D, v) with
    v = (sigma sigma_data)^2 / (sigma^2 + sigma_data^2). To second order in E around D, with gradient g and a diagonal
    Hessian h, tilting by exp(-scale E) moves their mean to D - v scale g / (1 + v scale h): exact for Gaussian priors
    and energies that are linear, or quadratic per column, such as a Gaussian policy's. Without the denominator, the
    correction would overshoot for narrow policies (large h). Negative h, from a concave E, is set to 0. First order:
    policy-guided diffusion (Jackson et al., 2024, arXiv 2404.06356).
    """
    where = where or GuidedRange()

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        estimate = denoise(x, sigma)
        if not where.holds(sigma):
            return estimate
        variance = energy.scale * sigma**2 * coefficients(sigma, sigma_data).c_skip
        with torch.enable_grad():
            leaf = estimate.detach().requires_grad_()
            total = energy.energy(_only(leaf, energy.moves)).sum()
            gradient = torch.autograd.grad(total, leaf, create_graph=True)[0]
            hessian = torch.zeros_like(leaf)
            if gradient.requires_grad:  # false for a linear energy
                hessian = torch.autograd.grad(gradient.sum(), leaf)[0].clamp(min=0)
        return estimate - where.clip(variance * gradient.detach() / (1 + variance * hessian))

    return guided


def _only(x: Tensor, moves: Tensor) -> Tensor:
    """`x` with gradients only in the columns `moves`."""
    return torch.where(moves, x, x.detach())
