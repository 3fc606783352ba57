import pytest
import torch
from builders import SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.schedule import Budget


def learner(**settings):
    return TD3BC(TD3BC.Config(**({"hidden": (32, 32)} | settings)), SPEC, seed=0)


def test_critic_loss_against_its_closed_form():
    td3, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    loss, noise = with_equal_draws(td3, lambda: td3.critic_loss(b), lambda: td3.rng.normal(64, 2))
    noise = (0.2 * noise).clamp(-0.5, 0.5)
    next_actions = (td3.target_actor(b.next_observations) + noise).clamp(-1, 1)
    next_v = torch.minimum(*td3.target_critic(b.next_observations, next_actions))
    y = (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach()
    q1, q2 = td3.critic(b.observations, b.actions)
    torch.testing.assert_close(loss, (b.weights * ((q1 - y) ** 2 + (q2 - y) ** 2)).mean())


def test_actor_loss_and_lambda_against_their_closed_form():
    td3, weights, regularization = learner(bc=0.7), torch.linspace(0, 2, 64), torch.linspace(1, 0, 64)
    b = make_batch(weights=weights, regularization=regularization)
    actions = td3.actor(b.observations)
    q1 = td3.critic(b.observations, actions)[0]
    scale = 2.5 / q1.abs().mean()
    cloning = 0.5 * ((actions - b.actions) ** 2).sum(1)  # the mean over two action dimensions
    expected = (weights * (-scale * q1 + 0.7 * regularization * cloning)).mean()
    torch.testing.assert_close(td3.actor_loss(b), expected)


def test_lambda_makes_the_loss_blind_to_the_scale_of_rewards():
    td3, b = learner(), make_batch()
    before = td3.actor_loss(b)
    with torch.no_grad():
        for parameter in (td3.critic.mlp.layers[-1].weight, td3.critic.mlp.layers[-1].bias):
            parameter *= 100
    torch.testing.assert_close(td3.actor_loss(b), before)


def test_lambda_is_not_differentiated():
    # without cloning, the gradient is that of Q1 up to a positive factor; a differentiated lambda would change it
    td3, b = learner(), make_batch(regularization=torch.zeros(64))
    actions = td3.actor(b.observations)
    q1 = td3.critic(b.observations, actions)[0]
    expected = torch.autograd.grad(-2.5 / q1.abs().mean().item() * q1.mean(), list(td3.actor.parameters()))
    found = torch.autograd.grad(td3.actor_loss(b), list(td3.actor.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_regularization_of_zero_removes_cloning():
    td3 = learner()
    b = make_batch(regularization=torch.zeros(64))
    other = b.where(actions=-b.actions)
    assert torch.equal(td3.actor_loss(b), td3.actor_loss(other))
    assert not torch.equal(td3.actor_loss(make_batch()), td3.actor_loss(other.where(regularization=torch.ones(64))))


def test_without_cloning_it_is_td3():
    td3, b = learner(bc=0.0), make_batch()
    q1 = td3.critic(b.observations, td3.actor(b.observations))[0]
    torch.testing.assert_close(td3.actor_loss(b), -q1.mean())


def test_smoothing_noise_is_bounded_and_of_its_spread():
    td3, states = learner(), torch.zeros(20_000, 3)
    noise = td3.target_actions(states) - td3.target_actor(states)
    assert 0.499 < noise.abs().max() <= 0.5 + 1e-6 and abs(noise.std() - 0.2) < 0.01
    assert learner(target_noise=50.0, noise_clip=9.0).target_actions(states).abs().max() == 1


def test_actor_and_targets_wait_for_their_interval():
    td3, b = learner(), make_batch()
    before = [p.clone() for p in td3.target_critic.parameters()]
    assert "actor_loss" not in td3.update(b)
    assert all(torch.equal(p, q) for p, q in zip(before, td3.target_critic.parameters(), strict=True))
    assert "actor_loss" in td3.update(b)
    expected = [0.995 * p + 0.005 * q for p, q in zip(before, td3.critic.parameters(), strict=True)]
    for target, value in zip(td3.target_critic.parameters(), expected, strict=True):
        torch.testing.assert_close(target.detach(), value.detach())


def test_exploration_has_its_spread_and_evaluation_none():
    td3, states = learner(exploration_noise=0.1), torch.zeros(20_000, 3)
    actions = td3.actor(states).detach()
    assert torch.equal(td3.act(states, deterministic=True), actions)
    assert abs((td3.act(states, rng=ShardedRng(0)) - actions).std() - 0.1) < 0.005
    assert torch.equal(learner(exploration_noise=0.0).act(states, rng=ShardedRng(0)), actions)


def test_a_deterministic_policy_has_no_density():
    with pytest.raises(TypeError, match="no density"):
        learner().log_prob(torch.zeros(1, 3), torch.zeros(1, 2))


def test_blocks_of_whole_batches_are_settings():
    td3 = learner(block_steps=1000, whole_batches=True, online_share=0.1)
    *_, finetune = td3.phases(Budget(pretrain_updates=9, online_steps=5000, updates_per_step=10))
    assert [finetune.cadence.due(step) for step in (999, 1000, 1001)] == [0, 10_000, 0]
    assert (finetune.shares.offline, finetune.shares.online, finetune.shares.whole_batches) == (0.9, 0.1, True)
    *_, finetune = learner().phases(Budget(pretrain_updates=9, online_steps=5000, updates_per_step=3))
    assert finetune.cadence.due(1) == 3


@pytest.mark.parametrize(("settings", "low", "high"), [({"bc": 0.0}, 0.5, 0.7), ({"alpha": 0.05}, -0.05, 0.25)])
def test_improves_on_the_data_but_stays_near_it(settings, low, high):
    # actions are uniform, of mean 0, and pay -(a - 0.6)^2: without cloning the optimum is found, with it a little of it
    td3, states = learner(learning_rate=3e-3, tau=0.02, **settings), torch.ones(64, 3)
    g = torch.Generator().manual_seed(0)
    for _ in range(500):
        actions = 2 * torch.rand(64, 2, generator=g) - 1
        rewards = -(actions - 0.6).square().sum(1)
        td3.update(one_step(states, actions, rewards))
    found = td3.act(states[:1], deterministic=True)
    assert low < found.min() and found.max() < high, found
