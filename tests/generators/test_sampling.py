import pytest
import torch

from o2o_diffusion.diffusion.sampling import RESTARTS, NoiseLevels, Sampling, solve
from o2o_diffusion.distributed import ShardedRng

LEVELS = NoiseLevels()


@pytest.mark.parametrize("std", [1.0, 0.3, 0.05])
def test_restarts_mend_the_solvers_error(std):
    """The exact denoiser of N(0, std^2): 16 steps of DPM spread it too far at every scale, restarts bring it back."""
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    errors = {}
    for restarts in (0, 8):
        sampling, rng = Sampling(num_steps=16, restarts=restarts), ShardedRng(0)
        x = LEVELS.sigma_max * noise
        rows = solve(lambda x, sigma: x * std**2 / (std**2 + sigma**2), x, sampling, LEVELS, rng.normal)
        errors[restarts] = abs(rows.std() / std - 1)
    assert errors[8] < 0.025 < 0.05 < errors[0]


def test_rows_restart_where_the_solver_needs_it():
    counts = [({}, 8), ({"solver": "heun"}, 0), ({"start_sigma": 0.2}, 0), ({"restarts": 2}, 2)]
    for settings, expected in counts:
        assert Sampling(**settings).num_restarts == expected
    assert RESTARTS == 8
    with pytest.raises(ValueError, match="at most 'restart_sigma'"):
        Sampling(restart_sigma=0.02)


@pytest.mark.parametrize(("start_sigma", "expected"), [(None, (80.0, 1.0, 0.1, 0.01)), (0.2, (0.2, 0.2, 0.0447, 0.01))])
def test_the_noise_of_restarts_falls(start_sigma, expected):
    sampling = Sampling(start_sigma=start_sigma, num_steps=2, restarts=3, restart_steps=2, restart_sigma_min=0.01)
    seen = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(float(sigma.flatten()[0]))
        return torch.zeros_like(x)

    solve(denoise, torch.randn(4, 9), sampling, LEVELS, ShardedRng(0).normal)
    assert seen[::2] == pytest.approx(expected, rel=0.01)
