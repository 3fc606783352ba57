"""Surfaces: linear relations and norms that hold in all real observations hold in projected ones."""

import torch

from o2o_diffusion.generators.surfaces import Surfaces


def observations(size: int, seed: int = 0) -> torch.Tensor:
    """[3 cos, x, 3 sin, y, x - 2 y, quaternion, constant]."""
    g = torch.Generator().manual_seed(seed)
    angle, x, y = (
        6.28 * torch.rand(size, generator=g),
        10 * torch.randn(size, generator=g),
        torch.randn(size, generator=g),
    )
    quaternion = torch.nn.functional.normalize(torch.randn(size, 4, generator=g), dim=1)
    columns = [3 * angle.cos(), x, 3 * angle.sin(), y, x - 2 * y, *quaternion.T, torch.full((size,), 7.0)]
    return torch.stack(columns, 1)


def test_noisy_observations_are_projected_and_real_ones_stay():
    surfaces = Surfaces(10)
    surfaces.fit(observations(2_000))
    real = observations(100, seed=1)
    torch.testing.assert_close(surfaces(real), real, atol=1e-3, rtol=1e-4)
    found = surfaces(real + 0.2 * torch.randn(real.shape, generator=torch.Generator().manual_seed(2)))
    ones = torch.ones(100)
    torch.testing.assert_close(found[:, [0, 2]].norm(dim=1), 3 * ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, 5:9].norm(dim=1), ones, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 4], found[:, 1] - 2 * found[:, 3], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[:, 9], 7 * ones)


def test_independent_columns_are_left_alone():
    surfaces, rows = Surfaces(4), torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    surfaces.fit(rows)
    torch.testing.assert_close(surfaces(3 * rows), 3 * rows)
