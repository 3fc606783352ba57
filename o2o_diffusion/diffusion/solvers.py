"""Diffusion solvers as functions of a denoiser: sigma falls from sigma_max to 0, x starts as sigma_max N(0, 1)."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import Denoiser, coefficients

if TYPE_CHECKING:  # importing diffusers takes more than a second
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler


def karras_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """[num_steps + 1] noise levels from sigma_max to sigma_min, then 0: eq. 5 of EDM (arXiv 2206.00364)."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1)]).float()


@torch.no_grad()
def sample_heun(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    churn_noise: float = 1.003,
    normal: Callable[..., Tensor] = torch.randn,
) -> Tensor:
    """Heun's second-order method: algorithm 2 of EDM (arXiv 2206.00364), 2 N - 1 evaluations.

    With `churn` > 0, noise drawn by `normal(B, D)` is added before each step with sigma in [churn_min, churn_max];
    SynthER and CFDG use 80 with 128 steps.
    """
    gamma = min(churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    levels = sigmas.tolist()
    for sigma, following in pairwise(levels):
        if gamma > 0 and churn_min <= sigma <= churn_max:
            raised = sigma * (1 + gamma)
            noise = normal(*x.shape).to(x.device)
            x = x + churn_noise * math.sqrt(raised**2 - sigma**2) * noise
            sigma = raised
        slope = (x - denoise(x, x.new_tensor(sigma))) / sigma
        euler = x + (following - sigma) * slope
        if following == 0:
            return euler
        corrected = (euler - denoise(euler, x.new_tensor(following))) / following
        x = x + (following - sigma) * (slope + corrected) / 2
    return x


def dpm_scheduler(
    sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, sigma_data: float = 1.0
) -> "EDMDPMSolverMultistepScheduler":
    """DPM-Solver++ 2M in EDM's notation, from diffusers."""
    from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler

    return EDMDPMSolverMultistepScheduler(
        sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data, rho=rho, solver_order=2
    )


@torch.no_grad()
def sample_dpm(denoise: Denoiser, x: Tensor, scheduler: "EDMDPMSolverMultistepScheduler", num_steps: int) -> Tensor:
    """DPM-Solver++ (Lu et al., 2022, arXiv 2211.01095) with diffusers' scheduler, `num_steps` evaluations.

    The scheduler expects the raw network output F and computes c_skip x + c_out F, so the denoiser's output, guided or
    not, is converted back to F. The scheduler is stateful: do not share one between concurrent runs.
    """
    scheduler.set_timesteps(num_steps)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.to(x.device), strict=False):
        c_skip, c_out, _, _ = coefficients(sigma, scheduler.config["sigma_data"])
        output = (denoise(x, sigma) - c_skip * x) / c_out
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return x
