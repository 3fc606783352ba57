"""Sampling rows with a denoiser: solver, restarts, and partial noising of real rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.solvers import dpm_scheduler, karras_sigmas, sample_dpm, sample_heun

RESTARTS = 8
"""Default number of restarts for the DPM solver started from pure noise."""


class NoiseLevels(NamedTuple):
    """The training noise levels of a denoiser and the standard deviation of its data."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling rows."""

    solver: Annotated[Literal["dpm", "heun"], "DPM-Solver++ 2M, or the papers' stochastic Heun"] = "dpm"
    num_steps: Annotated[int, "solver steps", Ge(1)] = 16
    churn: Annotated[float, "noise added by Heun (EDM's S_churn); 0: deterministic", Ge(0)] = 80.0
    restarts: Annotated[
        int | None, "number of restart (re-noise and denoise) passes; null: 8, or 0 for heun and start_sigma", Ge(0)
    ] = None
    restart_sigma: Annotated[float, "noise level of the first restart, in standard deviations of a column", Gt(0)] = 1.0
    restart_sigma_min: Annotated[float, "noise level of the last restart; levels are spaced geometrically", Gt(0)] = (
        0.03
    )
    restart_steps: Annotated[int, "solver steps per restart", Ge(1)] = 6
    start_sigma: Annotated[
        float | None, "noise level added to real offline rows as the start; null: pure noise", Gt(0)
    ] = None

    def __post_init__(self):
        if self.restart_sigma_min > self.restart_sigma:
            raise ValueError(
                f"'restart_sigma_min' is {self.restart_sigma_min}, expected at most 'restart_sigma',"
                f" {self.restart_sigma}"
            )

    @property
    def num_restarts(self) -> int:
        """Number of restarts; default 0 for Heun (its noise corrects errors) and real starting rows (to stay close)."""
        if self.restarts is not None:
            return self.restarts
        return RESTARTS if self.solver == "dpm" and self.start_sigma is None else 0


def solve(
    denoise: Denoiser, x: Tensor, sampling: Sampling, levels: NoiseLevels, normal: Callable[..., Tensor]
) -> Tensor:
    """[B, D] clean rows from noisy `x` at the first noise level; `normal(*shape)` draws the solver's noise.

    Restarts follow Xu et al. (2023), https://arxiv.org/abs/2306.14878, with DPM as the solver and decreasing noise:
    denoising again from a level contracts the solver and model errors made there, first in the consistency of coarse
    features, then in the consistency of an outcome with its state and action.
    """
    highest = sampling.start_sigma or levels.sigma_max
    if sampling.solver == "dpm":
        x = _descend(denoise, x, highest, sampling.num_steps, levels)
    else:
        sigmas = karras_sigmas(sampling.num_steps, levels.sigma_min, highest, levels.rho)
        x = sample_heun(denoise, x, sigmas, churn=sampling.churn, normal=normal)
    first = min(sampling.restart_sigma, highest)  # rows started from real ones stay close to them
    last = min(sampling.restart_sigma_min, first)
    for sigma in np.geomspace(first, last, sampling.num_restarts).tolist():
        x = _descend(denoise, x + sigma * normal(*x.shape), sigma, sampling.restart_steps, levels)
    return x


def _descend(denoise: Denoiser, x: Tensor, sigma: float, num_steps: int, levels: NoiseLevels) -> Tensor:
    """Denoise x [B, D] from noise level `sigma` to 0."""
    return sample_dpm(denoise, x, dpm_scheduler(levels.sigma_min, sigma, levels.rho, levels.sigma_data), num_steps)
