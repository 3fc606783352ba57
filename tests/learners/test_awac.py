import torch
from builders import SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.learners.awac import AWAC


def learner(**settings):
    return AWAC(AWAC.Config(**({"hidden": (32, 32)} | settings)), SPEC, seed=0)


def test_advantage_weights_against_their_closed_form():
    awac, b = learner(temperature=0.1), make_batch()
    found, noise = with_equal_draws(awac, lambda: awac.advantage_weights(b), lambda: awac.rng.normal(64, 2))
    sampled = (awac.actor(b.observations).mean + noise).clamp(-1, 1)
    q, v = (torch.minimum(*awac.critic(b.observations, actions)) for actions in (b.actions, sampled))
    torch.testing.assert_close(found, (10 * (q - v)).exp().clamp(max=100))
    assert not found.requires_grad


def test_advantage_weights_are_capped_at_100_and_1_for_what_the_policy_does():
    awac, b = learner(temperature=1e-6), make_batch()
    assert set(awac.advantage_weights(b).clamp(min=1e-3).tolist()) >= {100.0}
    awac.actor.log_std.data.fill_(-100.0)  # clamped to -5
    on_policy = b.where(actions=awac.actor(b.observations).mean.detach())
    weights = learner(temperature=1e6).advantage_weights(on_policy)
    torch.testing.assert_close(weights, torch.ones(64), atol=1e-4, rtol=0)


def test_critic_target_has_no_entropy():
    awac, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    loss, noise = with_equal_draws(awac, lambda: awac.critic_loss(b), lambda: awac.rng.normal(64, 2))
    next_actions = (awac.actor(b.next_observations).mean + noise).clamp(-1, 1)
    next_v = torch.minimum(*awac.target_critic(b.next_observations, next_actions))
    y = (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach()
    q1, q2 = awac.critic(b.observations, b.actions)
    torch.testing.assert_close(loss, (b.weights * ((q1 - y) ** 2 + (q2 - y) ** 2)).mean())


def test_actor_loss_is_a_weighted_regression():
    awac, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    loss, weights = with_equal_draws(awac, lambda: awac.actor_loss(b), lambda: awac.advantage_weights(b))
    policy = torch.distributions.Normal(awac.actor(b.observations).mean, 1.0)
    expected = -(b.weights * weights * policy.log_prob(b.actions).sum(-1)).mean()
    torch.testing.assert_close(loss, expected)


def test_the_papers_networks_have_three_layers():
    awac = AWAC(AWAC.Config(), SPEC, seed=0)
    widths = [layer.weight.shape[0] for layer in awac.actor.mlp.layers]
    assert widths == [256, 256, 256, 2] and len(awac.critic.mlp.layers) == 4


def test_learns_the_better_action_of_a_bandit():
    # two dataset actions, +-0.5, of which +0.5 pays 1 and -0.5 nothing
    awac = learner(learning_rate=3e-3, temperature=0.1, tau=0.02)
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        good = torch.rand(64, generator=g) < 0.3
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        states = torch.zeros(64, 3)
        awac.update(one_step(states, actions, good.float()))
    assert (awac.act(torch.zeros(1, 3), deterministic=True) - 0.5).abs().max() < 0.15
