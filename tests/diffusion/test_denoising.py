import math

import torch

from o2o_diffusion.diffusion.guidance import classifier_free
from o2o_diffusion.diffusion.loss import denoising_loss, draw_sigma, loss_weight
from o2o_diffusion.diffusion.preconditioning import coefficients, precondition
from o2o_diffusion.diffusion.solvers import dpm_scheduler, karras_sigmas, sample_dpm, sample_heun
from o2o_diffusion.diffusion.training import DenoiserTraining, average_decay, cosine_learning_rate, drop_conditions


def gaussian(x, sigma, mean: float = 1.5, std: float = 0.5):
    """The exact denoiser of N(mean, std^2)."""
    return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


def noise(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_karras_sigmas_fall_from_the_largest_to_zero():
    sigmas = karras_sigmas(16, 0.002, 80.0)
    assert math.isclose(sigmas[0], 80.0, rel_tol=1e-5) and math.isclose(sigmas[-2], 0.002, rel_tol=1e-4)
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_heun_recovers_a_gaussian():
    x = sample_heun(gaussian, 80 * noise(20_000, 1), karras_sigmas(32, 0.002, 80.0))
    assert abs(x.mean() - 1.5) < 0.03 and abs(x.std() - 0.5) < 0.02


def test_stochastic_heun_recovers_a_gaussian():
    torch.manual_seed(0)
    x = sample_heun(gaussian, 80 * noise(20_000, 1), karras_sigmas(128, 0.002, 80.0), churn=80.0)
    assert abs(x.mean() - 1.5) < 0.03 and abs(x.std() - 0.5) < 0.02


def test_dpm_recovers_a_gaussian_twice():
    scheduler = dpm_scheduler()
    for seed in (0, 1):
        x = sample_dpm(gaussian, 80 * noise(20_000, 1, seed=seed), scheduler, 32)
        assert abs(x.mean() - 1.5) < 0.03 and abs(x.std() - 0.5) < 0.03


def test_preconditioning_without_noise_is_the_identity():
    x = noise(8, 3)
    denoise = precondition(lambda x, noise: torch.full_like(x, 100.0))
    assert torch.allclose(denoise(x, torch.tensor(1e-7)), x, atol=1e-4)


def test_preconditioning_gives_the_network_unit_variance():
    sigma = torch.tensor([0.01, 1.0, 80.0])
    c_skip, c_out, c_in, c_noise = coefficients(sigma, 2.0)
    assert torch.allclose(c_in**2 * (sigma**2 + 4), torch.ones(3))
    assert torch.allclose(c_out**2, (1 - c_skip) ** 2 * 4 + c_skip**2 * sigma**2)  # target variance 1: EDM, eq. 114
    assert torch.allclose(c_noise, sigma.log() / 4)


def test_loss_weight_is_the_inverse_of_the_squared_output_factor():
    sigma = torch.tensor([0.01, 0.5, 20.0])
    assert torch.allclose(loss_weight(sigma, 0.7), 1 / coefficients(sigma, 0.7).c_out ** 2)


def test_loss_of_a_perfect_network_output_is_its_squared_error():
    x, sigma = noise(64, 3), draw_sigma(noise(64, 1, seed=1))
    eps = noise(64, 3, seed=2)
    c_skip, c_out, _, _ = coefficients(sigma)
    target = (x - c_skip * (x + sigma * eps)) / c_out
    loss = denoising_loss(precondition(lambda *_: target + 0.3), x, sigma, eps)
    assert math.isclose(loss, 0.09, rel_tol=1e-3)


def test_sigmas_are_log_normal():
    logs = draw_sigma(noise(50_000, 1)).log()
    assert abs(logs.mean() + 1.2) < 0.02 and abs(logs.std() - 1.2) < 0.02


def test_classifier_free_extrapolates_in_one_pass():
    calls = []

    def conditional(x, sigma, labels):
        calls.append(len(x))
        return x * sigma + labels[:, None]

    guided = classifier_free(conditional, condition=torch.ones(4), null=2, scale=0.5)
    x, sigma = noise(4, 3), torch.tensor(0.3)
    one, two = torch.ones(4), 2 * torch.ones(4)
    expected = 1.5 * (x * sigma + one[:, None]) - 0.5 * (x * sigma + two[:, None])
    assert torch.allclose(guided(x, sigma), expected) and calls == [8]
    classifier_free(conditional, condition=torch.ones(4), null=2, scale=0.0)(x, sigma)
    assert calls == [8, 4]


def test_guidance_shifts_a_gaussian_away_from_the_null_mean():
    """p(x|c)^(1+w) p(x)^(-w) of two unit Gaussians at 1 and 0 is a unit Gaussian at 1 + w."""

    def conditional(x, sigma, labels):
        return gaussian(x, sigma, mean=torch.where(labels == 2, 0.0, 1.0)[:, None], std=1.0)  # type: ignore

    guided = classifier_free(conditional, condition=torch.ones(20_000), null=2, scale=1.0)
    x = sample_dpm(guided, 80 * noise(20_000, 1), dpm_scheduler(), 32)
    assert abs(x.mean() - 2.0) < 0.05 and abs(x.std() - 1.0) < 0.03  # 0.025 of it: sigma_max is finite


def test_conditions_are_dropped_where_the_draw_is_small():
    labels = drop_conditions(torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.3, 0.2]), null=2, probability=0.25)
    assert labels.tolist() == [2, 1, 2]


def test_learning_rate_falls_along_a_cosine():
    rates = [cosine_learning_rate(0.1, step, 4) for step in range(5)]
    assert torch.allclose(torch.tensor(rates), 0.1 * torch.tensor([1, 0.853553, 0.5, 0.146447, 0]))


def test_average_follows_short_runs():
    assert [average_decay(0.995, n) for n in (0, 90, 10_000)] == [0.1, 0.91, 0.995]


def test_average_is_the_weighted_sum_of_weights():
    average = torch.nn.Linear(1, 1, bias=False)
    start = average.weight.item()
    training = DenoiserTraining(average, learning_rate=0.1, average_interval=2)
    training.begin(average, num_steps=2)
    for _ in range(2):
        training.step(training.network(torch.ones(1, 1)).sum(), average)
    assert math.isclose(average.weight.item(), 0.1 * start + 0.9 * training.network.weight.item(), rel_tol=1e-5)
