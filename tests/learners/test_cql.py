import math

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.networks.actors import Gaussian, TanhGaussian
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.schedule import Budget, Cadence


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def learner(**settings):
    small = {"hidden": (32, 32), "penalty_actions": 4, "backup_actions": 3}
    return CQL(CQL.Config(**(small | settings)), SPEC, seed=0)


def batch():
    return make_batch(weights=torch.linspace(0.5, 2, 64), regularization=torch.linspace(2, 0, 64))


def make_constant(cql, value):
    """Critics that are `value` everywhere."""
    output = cql.critic.mlp.layers[-1]
    output.weight.data.zero_()
    output.bias.data.fill_(value)


def test_penalty_of_a_constant_critic_against_its_closed_form():
    cql, b = learner(), batch()
    make_constant(cql, 7.0)
    (_, log_density), (_, difference) = with_equal_draws(cql, lambda: cql.proposals(b), lambda: cql.differences(b))
    torch.testing.assert_close(log_density[:, :4], torch.full((64, 4), -2 * math.log(2)))  # an area of 2 x 2
    expected = (4 * 4 + (-log_density[:, 4:]).exp().sum(1)).log()  # log sum of 1 / density
    torch.testing.assert_close(difference, expected.expand(2, -1), rtol=1e-4, atol=1e-4)


def test_without_importance_sampling_a_constant_critic_has_no_penalty():
    cql = learner(importance_sampling=False, penalty_temperature=0.5)
    make_constant(cql, 7.0)
    torch.testing.assert_close(cql.differences(batch())[1], torch.zeros(2, 64), atol=1e-5, rtol=0)


def test_soft_maximum_is_a_maximum_at_low_temperature():
    cql, q = learner(penalty_temperature=1e-3, importance_sampling=False), torch.randn(2, 5, 12)
    torch.testing.assert_close(cql.soft_maximum(q, q[0], q[..., 0]), q.amax(-1), atol=0.01, rtol=0)


def test_densities_are_those_of_the_proposing_policies():
    cql, b = learner(), batch()
    actions, log_density = cql.proposals(b)
    assert actions.shape == (64, 12, 2) and actions.abs().max() <= 1
    for observations, where in ((b.observations, slice(4, 8)), (b.next_observations, slice(8, 12))):
        for j in range(where.start, where.stop):
            expected = cql.policy(observations).log_prob(actions[:, j])
            torch.testing.assert_close(log_density[:, j], expected, atol=1e-2, rtol=1e-3)


def test_target_is_the_best_of_several_next_actions_without_entropy():
    cql, b = learner(), batch()
    policy = cql.policy(b.next_observations).repeat(3)
    target_q, actions = with_equal_draws(cql, lambda: cql.target_q(b), lambda: policy.sample(cql.rng))
    values = [cql.target_critic(b.next_observations, actions[:, j]).amin(0) for j in range(3)]
    torch.testing.assert_close(target_q, b.rewards + b.discounts * torch.stack(values).amax(0))


def test_rows_without_regularization_have_no_penalty():
    cql, b = learner(), batch().where(regularization=torch.zeros(64))
    assert torch.equal(*with_equal_draws(cql, lambda: cql.conservative_loss(b)[0], lambda: cql.critic_loss(b)))


def test_differences_are_clipped():
    cql, b = learner(min_difference=3.0, max_difference=3.5), batch()
    _, difference = cql.differences(b)
    assert 3 <= difference.min() < difference.max() <= 3.5


def test_lagrange_weight_against_its_equations():
    cql, b = learner(gap=0.8, conservatism=5.0), batch()
    fixed = learner(conservatism=5.0)
    loss, penalty = cql.conservative_loss(b)
    fixed_loss, fixed_penalty = fixed.conservative_loss(b)
    mean = (b.weights * b.regularization).mean()
    torch.testing.assert_close(penalty, fixed_penalty - 0.8 * mean)
    td_loss = fixed_loss - 2 * 5 * fixed_penalty
    torch.testing.assert_close(loss, td_loss + 2 * 5 * math.e * penalty)  # log multiplier 1 at first
    torch.testing.assert_close(cql.multiplier_loss(torch.tensor(0.3)), torch.tensor(-5 * math.e * 0.3))
    cql.multiplier.log.data.fill_(50.0)
    assert cql.penalty_weight() == 5e6


@pytest.mark.parametrize(("gap", "grows"), [(-100.0, True), (100.0, False)])
def test_the_multiplier_grows_while_the_penalty_exceeds_the_gap(gap, grows):
    cql = learner(gap=gap)
    cql.update(batch())
    assert (cql.multiplier.log > 1) == grows
    assert "multiplier" not in learner().update(batch())


def test_no_gradient_of_the_penalty_reaches_the_actor():
    cql = learner(gap=0.8)
    loss, _ = cql.conservative_loss(batch())
    gradients = torch.autograd.grad(loss, list(cql.actor.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


def test_without_weight_it_is_sac():
    cql, b = learner(online_conservatism=0.0), batch()
    cql.phase = FINETUNE
    assert cql.conservatism == 0 and "penalty" not in cql.update(b)
    cql.phase = PRETRAIN
    assert cql.conservatism == 5 and "penalty" in cql.update(b)


def test_equal_critics_are_penalized_alike_however_many_are_drawn():
    whole, b = learner(ensemble_size=4), batch()
    pair = learner(ensemble_size=4, penalty_critics=2)
    for cql in (whole, pair):
        for parameter in cql.critic.parameters():
            parameter.data.copy_(parameter.data[:1].expand_as(parameter))
        cql.target_q = lambda b: torch.zeros(len(b))
        cql.draw_members = lambda size: None if size is None else torch.tensor([3, 1])
    torch.testing.assert_close(whole.conservative_loss(b), pair.conservative_loss(b))


def test_networks_and_rates_are_the_authors():
    cql = learner()
    optimizers = (cql.actor_optimizer, cql.temperature_optimizer, cql.critic_optimizer, cql.multiplier_optimizer)
    assert [o.learning_rate for o in optimizers] == [1e-4, 1e-4, 3e-4, 3e-4]
    torch.testing.assert_close(cql.critic.mlp.layers[-1].weight.norm(dim=1), torch.full((2, 1), 0.01))
    output = cql.actor.mlp.layers[-1].weight
    torch.testing.assert_close(output @ output.T, 1e-4 * torch.eye(4), atol=1e-8, rtol=0)
    assert cql.actor.affine.tolist() == [1, -1]
    torch.testing.assert_close(cql.policy(torch.zeros(5, 3)).base.log_std, -torch.ones(5, 2), atol=0.05, rtol=0)


def test_updates_after_steps_on_both_halves():
    pretrain, warmup, finetune = learner().phases(Budget(pretrain_updates=10, online_steps=50, warmup_steps=10))
    assert finetune.cadence == Cadence(1, every=1)
    assert finetune.shares.offline == finetune.shares.online == 0.5
    assert pretrain.updates == 10 and not warmup.learns and warmup.cadence.updates == 0


def test_several_actions_and_some_members_equal_one_by_one():
    critic = Critic(3, 2, (8, 8), ensemble_size=4, layer_norm=True)
    observations, actions = torch.randn(5, 3), torch.randn(5, 6, 2)
    q = critic(observations, actions)
    expected = torch.stack([critic(observations, actions[:, j]) for j in range(6)], dim=-1)
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(critic(observations, actions, torch.tensor([2, 0, 2])), q[[2, 0, 2]])


def test_repeated_policies_sample_as_one():
    mean, log_std = torch.randn(2000, 2) / 4, torch.full((2000, 2), -1.0)
    policy = TanhGaussian(Gaussian(mean, log_std))
    actions, log_prob = policy.repeat(3).sample_with_log_prob(ShardedRng(0))
    assert actions.shape == (2000, 3, 2)
    torch.testing.assert_close(log_prob[:, 1], policy.log_prob(actions[:, 1]), atol=1e-3, rtol=1e-3)
    z = (actions.atanh() - mean[:, None]) / math.exp(-1)
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05


def test_learns_the_better_action_of_the_data_and_distrusts_the_rest():
    # the data know the actions +-0.5, of which +0.5 pays 1 and -0.5 nothing
    cql = learner(learning_rate=3e-3, actor_learning_rate=3e-3, conservatism=1.0, tau=0.02)
    g, states = torch.Generator().manual_seed(0), torch.zeros(64, 3)
    for _ in range(200):
        good = torch.rand(64, generator=g) < 0.5
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        cql.update(one_step(states, actions, good.float()))
    assert (cql.act(states[:1], deterministic=True) - 0.5).abs().max() < 0.25
    q = {a: cql.values(states[:1], torch.full((1, 2), a)).item() for a in (-0.95, 0.0, 0.5, 0.95)}
    assert q[0.5] > max(q[-0.95], q[0.0], q[0.95])
