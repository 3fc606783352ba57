import math

import torch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.actors import Gaussian, GaussianActor, TanhGaussian, TanhGaussianActor
from o2o_diffusion.networks.mlp import MLP


def test_gaussian_log_prob_equals_torch():
    mean, log_std, actions = torch.randn(5, 3), torch.randn(3), torch.randn(5, 3)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    torch.testing.assert_close(Gaussian(mean, log_std).log_prob(actions), expected)


def test_tanh_gaussian_density_integrates_to_one():
    policy = TanhGaussian(Gaussian(torch.tensor([[0.4]]), torch.tensor([[-0.3]])))
    actions = torch.linspace(-1 + 1e-4, 1 - 1e-4, 20_001)[:, None]
    density = policy.log_prob(actions).exp()
    assert abs(torch.trapezoid(density, actions[:, 0]).item() - 1) < 1e-3


def test_tanh_gaussian_log_prob_equals_the_change_of_variables():
    mean, log_std, u = torch.randn(6, 2), torch.randn(6, 2) / 2, torch.randn(6, 2)
    policy = TanhGaussian(Gaussian(mean, log_std))
    base = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
    expected = (base - torch.log1p(-u.tanh().square())).sum(-1)
    torch.testing.assert_close(policy.log_prob(u.tanh()), expected, atol=1e-4, rtol=1e-4)


def test_tanh_gaussian_is_finite_at_the_bounds():
    mean = torch.zeros(3, 1, requires_grad=True)
    policy = TanhGaussian(Gaussian(mean, torch.zeros(3, 1)))
    log_prob = policy.log_prob(torch.tensor([[-1.0], [1.0], [0.999999]]))
    (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
    assert log_prob.isfinite().all() and gradient.isfinite().all()


def test_sampled_log_prob_stays_exact_where_tanh_rounds_to_one():
    policy = TanhGaussian(Gaussian(torch.tensor([[12.0]]), torch.tensor([[-5.0]])))
    actions, log_prob = policy.sample_with_log_prob(ShardedRng(0))
    u, std = 12.0 + math.exp(-5) * ShardedRng(0).normal(1, 1).item(), math.exp(-5)
    expected = -0.5 * ((u - 12) / std) ** 2 + 5 - 0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - u)
    assert actions.item() == 1.0 and abs(log_prob.item() - expected) < 1e-3


def test_iql_actor_bounds_its_mean_and_clamps_its_spread():
    actor = GaussianActor(3, 2, (16,))
    actor.log_std.data = torch.tensor([-9.0, 9.0])
    policy = actor(100 * torch.randn(4, 3))
    assert policy.mode.abs().max() <= 1 and policy.log_std.tolist() == [[-5, 2]]


def test_spread_depends_on_the_state_for_sac_only():
    states = torch.randn(4, 3)
    assert TanhGaussianActor(3, 2, (16,))(states).base.log_std.std(0).min() > 0
    assert TanhGaussianActor(3, 2, (16,), state_dependent_std=False)(states).base.log_std.shape == (1, 2)


def test_dropout_needs_an_rng_and_keeps_the_mean():
    actor, states = GaussianActor(3, 1, (64,), dropout=0.5), torch.randn(1, 3)
    assert torch.equal(actor(states).mean, actor(states).mean)
    dropped = torch.cat([actor.mlp(states, rng) for rng in [ShardedRng(0)] * 4000])
    assert dropped.std() > 0.05
    torch.testing.assert_close(dropped.mean(0), actor.mlp(states)[0], atol=0.1, rtol=0)


def test_samples_come_from_the_rng_that_is_passed():
    policy = TanhGaussianActor(3, 2, (16,))(torch.randn(4, 3))
    assert torch.equal(policy.sample(ShardedRng(1)), policy.sample(ShardedRng(1)))
    assert not torch.equal(policy.sample(ShardedRng(1)), policy.sample(ShardedRng(2)))


def test_dropout_clears_its_share_of_hidden_units_and_scales_the_others():
    mlp = MLP(20, (20,), 20, dropout=0.2)
    for layer in mlp.layers:
        layer.weight.data.copy_(torch.eye(20))
    out = mlp(torch.ones(5000, 20), ShardedRng(0))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    cleared = (out == 0).float()
    assert abs(cleared.mean() - 0.2) < 0.01 and (cleared.mean(0) - 0.2).abs().max() < 0.03  # anew for each row
