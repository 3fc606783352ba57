import torch

from o2o_diffusion.diffusion.guidance import noised_energy
from o2o_diffusion.diffusion.loss import contrastive_accuracy, contrastive_loss, draw_solver_sigma
from o2o_diffusion.networks.energy import EnergyMLP
from o2o_diffusion.optimization import Optimizer

SUPPORT = torch.tensor([True, False, True])


def trained_output() -> EnergyMLP:
    """An energy that is not flat."""
    torch.manual_seed(0)
    energy = EnergyMLP(SUPPORT, hidden=(16, 16))
    torch.nn.init.normal_(energy.output.weight)
    return energy


def test_only_the_support_matters():
    energy, x = trained_output(), torch.randn(5, 3)
    other = x.clone()
    other[:, 1] = 100.0
    noise = torch.randn(5)
    assert energy(x, noise).shape == (5,) and torch.equal(energy(x, noise), energy(other, noise))
    x.requires_grad_()
    gradient = torch.autograd.grad(energy(x, noise).sum(), x)[0]
    assert (gradient[:, 1] == 0).all() and (gradient[:, [0, 2]] != 0).all()


def test_one_noise_level_serves_all_rows():
    energy, x = trained_output(), torch.randn(5, 3)
    assert torch.equal(energy(x, torch.tensor([0.3])), energy(x, torch.full((5,), 0.3)))
    assert not torch.allclose(energy(x, torch.tensor([0.3])), energy(x, torch.tensor([0.9])))


def test_an_untrained_energy_is_flat():
    energy, x = EnergyMLP(SUPPORT), torch.randn(5, 3, requires_grad=True)
    energies = energy(x, torch.zeros(1))
    assert (energies == 0).all() and (torch.autograd.grad(energies.sum(), x)[0] == 0).all()
    energy = trained_output()
    energy.flatten()
    assert (energy(x, torch.zeros(1)) == 0).all()


def test_contrast_learns_the_noised_ratio_of_two_densities():
    """N(1, 1) against N(0, 1) under noise: E = (0.5 - z) / (1 + sigma^2) + a constant of the level."""
    torch.manual_seed(0)
    energy = EnergyMLP(torch.tensor([True]), hidden=(32, 32))
    optimizer = Optimizer(energy.parameters(), 1e-2)
    for _ in range(300):
        sigma = draw_solver_sigma(torch.rand(128, 1, 1), 0.01, 10.0)
        x = torch.randn(128, 11, 1)
        x[:, 0] += 1.0
        x = (x + sigma * torch.randn(128, 11, 1)).flatten(0, 1)
        energies = noised_energy(energy)(x, sigma.expand(-1, 11, 1).flatten(0, 1)).view(128, 11)
        optimizer.step(contrastive_loss(energies[:, 0], energies[:, 1:]))
    for sigma in (0.1, 1.0, 3.0):
        z = torch.tensor([[-0.5], [1.5]])
        low, high = noised_energy(energy)(z, torch.tensor(sigma)).tolist()
        assert abs((high - low) + 2 / (1 + sigma**2)) < 0.3, sigma
    positives, negatives = energies[:, 0].detach(), energies[:, 1:].detach()
    assert 1.5 / 11 < contrastive_accuracy(positives, negatives) < 5 / 11
