import math

import pytest
import torch

from o2o_diffusion.diffusion.guidance import (
    Energy,
    GuidedRange,
    classifier_free,
    clean_energy_guided,
    energy_guided,
    noised_energy,
)
from o2o_diffusion.diffusion.loss import contrastive_accuracy, contrastive_loss, draw_solver_sigma
from o2o_diffusion.diffusion.preconditioning import coefficients
from o2o_diffusion.diffusion.solvers import dpm_scheduler, karras_sigmas, sample_dpm, sample_heun

MEAN, STD = 0.5, 1.2  # of the prior, in both columns
WANTED, WIDTH = 2.0, 0.8  # the energy (x - WANTED)^2 / (2 WIDTH^2)
VARIANCE = 1 / (1 / STD**2 + 1 / WIDTH**2)
TILTED = VARIANCE * (MEAN / STD**2 + WANTED / WIDTH**2), math.sqrt(VARIANCE)
ALWAYS = GuidedRange(0.0, math.inf, math.inf)
FIRST = torch.tensor([True, False])
SIZE = 20_000


def prior(x, sigma):
    """The exact denoiser of N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def clean_energy(x):
    return ((x - WANTED) ** 2).sum(1) / (2 * WIDTH**2)


def noisy_energy(z, sigma):
    """-log E[exp(-clean_energy(x)) | z], up to a constant: x given z is N(D, v)."""
    v = STD**2 * sigma**2 / (STD**2 + sigma**2)
    return ((prior(z, sigma) - WANTED) ** 2).sum(1) / (2 * (v + WIDTH**2))


def linear_energy(x):
    return -0.7 * x.sum(1)


def start() -> torch.Tensor:
    x = torch.randn(SIZE, 2, generator=torch.Generator().manual_seed(0))
    return 80.0 * (x - x.mean(0)) / x.std(0) + MEAN  # exact moments leave the solver's error only


SOLVERS = {
    "dpm": lambda denoise: sample_dpm(denoise, start(), dpm_scheduler(sigma_data=STD), 32),
    "heun": lambda denoise: sample_heun(denoise, start(), karras_sigmas(64)),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "guided, wanted",
    [
        (energy_guided(prior, [Energy(noisy_energy, FIRST)], ALWAYS), TILTED),
        (clean_energy_guided(prior, Energy(clean_energy, FIRST), ALWAYS, sigma_data=STD), TILTED),
        (clean_energy_guided(prior, Energy(linear_energy, FIRST), ALWAYS, sigma_data=STD), (MEAN + 0.7 * STD**2, STD)),
    ],
    ids=["noised", "clean", "linear"],
)
def test_guided_samples_follow_the_tilted_gaussian_in_the_moved_column(solver, guided, wanted):
    x = SOLVERS[solver](guided)
    for column, (mean, std) in enumerate((wanted, (MEAN, STD))):
        assert abs(x[:, column].mean() - mean) < 0.03 and abs(x[:, column].std() - std) < 0.025


def test_the_stochastic_solver_makes_up_for_levels_without_guidance():
    torch.manual_seed(0)
    guided = energy_guided(prior, [Energy(noisy_energy, FIRST)], GuidedRange())
    plain = SOLVERS["heun"](guided)[:, 0]
    x = sample_heun(guided, start()[:10_000], karras_sigmas(64), churn=80.0)[:, 0]
    assert abs(x.mean() - TILTED[0]) < 0.03 < abs(plain.mean() - TILTED[0]) < 0.1


def test_scales_add_up():
    z, sigma = torch.randn(6, 2), torch.tensor(0.7)
    both = torch.tensor([True, True])
    twice = energy_guided(prior, [Energy(noisy_energy, both), Energy(noisy_energy, FIRST, 2.0)], ALWAYS)(z, sigma)
    once = energy_guided(prior, [Energy(noisy_energy, both)], ALWAYS)(z, sigma)
    change, single = twice - prior(z, sigma), once - prior(z, sigma)
    assert torch.allclose(change, single * torch.tensor([3.0, 1.0]), atol=1e-6)
    assert energy_guided(prior, [], ALWAYS) is prior


def test_a_narrow_policy_is_not_overshot():
    """The step is v h / (1 + v h) of the way to the minimum of a quadratic energy, for ever so large h."""
    narrow = Energy(lambda x: 1e4 * ((x - WANTED) ** 2).sum(1), FIRST)
    z, sigma = torch.randn(6, 2), torch.tensor(1.0)
    guided = clean_energy_guided(prior, narrow, ALWAYS, sigma_data=STD)(z, sigma)
    assert torch.allclose(guided[:, 0], torch.full((6,), WANTED), atol=1e-3)
    assert torch.equal(guided[:, 1], prior(z, sigma)[:, 1])


def test_long_corrections_are_clipped_and_short_ones_are_not():
    z, sigma = torch.randn(6, 2), torch.tensor(1.0)
    steep = Energy(lambda z, sigma: 100 * z[:, 0] * (torch.arange(6) < 3), FIRST)
    slight = Energy(lambda z, sigma: 0.1 * z[:, 0], FIRST)
    change = energy_guided(prior, [steep, slight])(z, sigma) - prior(z, sigma)
    lengths = torch.tensor([math.sqrt(2)] * 3 + [0.1] * 3)
    assert torch.allclose(change[:, 0], -lengths, atol=1e-5)
    clean = clean_energy_guided(prior, Energy(lambda x: 100 * x[:, 0], FIRST))(z, sigma) - prior(z, sigma)
    assert torch.allclose(clean.norm(dim=1), torch.full((6,), math.sqrt(2)), atol=1e-5)


@pytest.mark.parametrize("sigma, guides", [(0.005, False), (0.02, True), (9.0, True), (11.0, False)])
def test_guidance_is_for_levels_between_two(sigma, guides):
    z, sigma = torch.randn(6, 2), torch.tensor(sigma)
    for guided in (
        energy_guided(prior, [Energy(noisy_energy, FIRST)]),
        clean_energy_guided(prior, Energy(clean_energy, FIRST)),
    ):
        assert torch.equal(guided(z, sigma), prior(z, sigma)) is not guides


def test_guidance_wraps_a_guided_denoiser():
    """Classifier-free guidance to the mean 1, then a linear energy: N(1 + 0.7, 1)."""

    def conditional(x, sigma, labels):
        return (x + sigma**2 * (labels == 1)[:, None]) / (1 + sigma**2)

    free = classifier_free(conditional, condition=torch.ones(4_000), null=2.0, scale=0.0)
    guided = clean_energy_guided(free, Energy(linear_energy, FIRST), ALWAYS)
    x = sample_dpm(guided, start()[:4_000], dpm_scheduler(), 32)
    assert abs(x[:, 0].mean() - 1.7) < 0.06 and abs(x[:, 1].mean() - 1.0) < 0.06


def test_a_networks_energy_sees_scaled_rows():
    z, sigma = torch.randn(6, 2), torch.tensor(3.0)
    _, _, c_in, c_noise = coefficients(sigma, 0.5)
    energy = noised_energy(lambda x, noise: x.sum(1) + noise, sigma_data=0.5)
    assert torch.allclose(energy(z, sigma), (c_in * z).sum(1) + c_noise)


def test_contrast_is_a_cross_entropy_with_logits_minus_energy():
    positives, negatives = torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    terms = [math.log(sum(math.exp(0.0 - e) for e in (0, 1, 2))), math.log(sum(math.exp(1.0 - e) for e in (1, 0, 3)))]
    assert math.isclose(contrastive_loss(positives, negatives), sum(terms) / 2, rel_tol=1e-6)
    assert contrastive_accuracy(positives, negatives) == 0.5
    flat = contrastive_loss(torch.zeros(4), torch.zeros(4, 10))
    assert math.isclose(flat, math.log(11), rel_tol=1e-6)


def test_energies_are_trained_where_solvers_meet_them():
    sigmas = karras_sigmas(128, 0.01, 10.0)[:-1]
    drawn = draw_solver_sigma(torch.linspace(1, 0, 128), 0.01, 10.0)
    assert torch.allclose(drawn, sigmas, rtol=1e-4)
