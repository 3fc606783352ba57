import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.learners.famo2o import encode
from o2o_diffusion.learners.famo2o_cql import FamO2OCQL
from o2o_diffusion.schedule import Budget, Cadence

NETWORKS = ("actor", "critic", "target_critic", "temperature", "multiplier", "balance")


def learner(**settings):
    small = {"hidden": (32, 32), "penalty_actions": 4}
    return FamO2OCQL(FamO2OCQL.Config(**(small | settings)), SPEC, seed=0)


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)


@pytest.mark.parametrize("is_online", [False, True])
def test_beta_stays_positive_in_its_range(is_online):
    family = learner()
    family.phase = FINETUNE if is_online else PRETRAIN
    beta = family.training_beta(make_batch(5000))
    assert 0.5 <= beta.min() < 0.6 and 1.4 < beta.max() <= 1.5
    chosen = family.scale(family.balance(make_batch().observations).mode)
    assert chosen.min() > 0.5 and chosen.max() < 1.5


def test_the_balance_policy_begins_at_the_middle_of_the_range_in_every_state():
    family = learner()
    assert family.balance.log_std is None and family.balance.affine.tolist() == [1.0, -1.0]
    assert torch.allclose(family.scale(family.balance(make_batch().observations).mode), torch.tensor(1.0), atol=0.02)


def test_uniform_betas_offline_and_the_balance_policys_own_online():
    family = learner()
    assert abs(family.training_beta(make_batch(5000)).var() - 1 / 12) < 0.01
    family.phase = FINETUNE
    family.balance.affine.data = torch.tensor([0.0, -10.0])  # hardly any spread
    chosen = family.scale(family.balance(make_batch().observations).mode)
    torch.testing.assert_close(family.training_beta(make_batch()), chosen, atol=1e-3, rtol=0)


def test_actions_in_the_next_state_have_that_states_beta():
    family, b = learner(), make_batch()
    beta = family.scale(family.balance(b.next_observations).mode)
    policy = family.actor(b.next_observations, encode(beta))
    target_q, actions = with_equal_draws(family, lambda: family.target_q(b), lambda: policy.sample(family.rng))
    next_v = family.target_critic(b.next_observations, actions).amin(0)
    torch.testing.assert_close(target_q, b.rewards + b.discounts * next_v)


def test_actor_loss_against_its_equation():
    family, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    family.beta = torch.linspace(0.5, 1.5, 64)
    policy = family.actor(b.observations, encode(family.beta))
    (loss, log_prob), actions = with_equal_draws(
        family, lambda: family.actor_loss(b), lambda: policy.sample(family.rng)
    )
    torch.testing.assert_close(log_prob, policy.log_prob(actions), atol=1e-3, rtol=1e-3)
    q = family.critic(b.observations, actions).amin(0)
    torch.testing.assert_close(loss, (b.weights * (log_prob - family.beta * q)).mean())


def test_penalty_and_actor_share_the_betas_of_an_update():
    family, seen = learner(), []
    original = family.training_policy
    family.training_policy = lambda b: seen.append(family.beta) or original(b)
    family.update(make_batch())
    family.update(make_batch())
    assert seen[0] is seen[1] and seen[2] is seen[3] and not torch.equal(seen[0], seen[2])


def test_balance_loss_has_no_entropy_and_reaches_the_balance_policy_only():
    family, b = learner(), make_batch()

    def sample_actions():
        x = family.balance(b.observations).sample(family.rng)
        return family.actor(b.observations, encode(family.scale(x))).sample(family.rng)

    loss, actions = with_equal_draws(family, lambda: family.balance_loss(b), sample_actions)
    torch.testing.assert_close(loss, -family.critic(b.observations, actions).amin(0).mean())
    assert any(gradient.abs().sum() > 0 for gradient in gradients(loss, family.balance))
    before = {name: [p.clone() for p in getattr(family, name).parameters()] for name in NETWORKS}
    family.update_balance(b)
    for name, parameters in before.items():
        same = [torch.equal(old, new) for old, new in zip(parameters, getattr(family, name).parameters(), strict=True)]
        assert all(same) == (name != "balance")


def test_no_other_loss_reaches_the_balance_policy():
    family, b = learner(), make_batch()
    family.phase = FINETUNE
    family.beta = family.training_beta(b)
    for loss in (family.actor_loss(b)[0], family.conservative_loss(b)[0]):
        assert all(gradient is None for gradient in gradients(loss, family.balance))


def test_the_balance_policy_steps_at_every_update_and_updates_come_in_blocks():
    family = learner()
    assert all("balance_loss" in family.update(make_batch()) for _ in range(3))
    *_, finetune = family.phases(Budget(pretrain_updates=10, online_steps=3000))
    assert finetune.cadence == Cadence(1, every=1000)


def test_the_family_spans_caution_and_greed():
    # the data know the actions +-0.5, of which +0.5 pays 1: at a large beta, Q outweighs entropy
    family = learner(learning_rate=3e-3, conservatism=0.1, inverse_temperature=2.5, spread=2.4, tau=0.02)
    family.temperature_optimizer.learning_rate = 0.0
    g, states = torch.Generator().manual_seed(0), torch.zeros(64, 3)
    for _ in range(300):
        good = torch.rand(64, generator=g) < 0.5
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        family.update(one_step(states, actions, good.float()))
    policy = family.actor(states[:2], encode(torch.tensor([0.2, 4.8])))
    cautious, greedy = policy.base.log_std.mean(1)
    assert greedy < cautious - 1 and (policy.mode[1] - 0.5).abs().max() < 0.25
    assert family.scale(family.balance(states[:1]).mode) > 2.5
