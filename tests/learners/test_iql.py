import torch
from builders import SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.learners.iql import IQL, expectile_loss


def learner(**settings):
    return IQL(IQL.Config(**({"hidden": (32, 32)} | settings)), SPEC, seed=0)


def test_expectile_loss_is_minimal_at_the_expectile():
    # of a fair coin {0, 1} the expectile m solves t (1 - m) = (1 - t) m, hence m = t
    m = torch.linspace(0, 1, 1001)
    loss = expectile_loss(0 - m, 0.8) + expectile_loss(1 - m, 0.8)
    assert abs(m[loss.argmin()] - 0.8) < 1e-3


def test_expectile_loss_against_its_formula():
    difference = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(expectile_loss(difference, 0.7), torch.tensor([0.3 * 4, 0.0, 0.7 * 9]))


def test_losses_against_their_equations():
    iql, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    q_target = iql.target_critic(b.observations, b.actions).amin(0).detach()
    v, next_v = iql.value(b.observations), iql.value(b.next_observations)
    advantage = q_target - v
    expected_v = (b.weights * (0.7 - (advantage < 0).float()).abs() * advantage**2).mean()
    torch.testing.assert_close(iql.value_loss(b, q_target), expected_v)

    q1, q2 = iql.critic(b.observations, b.actions)
    y = b.rewards + 0.99 * (1 - b.terminations) * next_v
    torch.testing.assert_close(iql.critic_loss(b), (b.weights * ((q1 - y) ** 2 + (q2 - y) ** 2)).mean())

    policy = torch.distributions.Normal(iql.actor(b.observations).mean, 1.0)
    weight = (3 * advantage).exp().clamp(max=100)
    expected_pi = -(b.weights * weight * policy.log_prob(b.actions).sum(-1)).mean()
    torch.testing.assert_close(iql.actor_loss(b, q_target), expected_pi)


def test_advantage_weights_are_capped_at_100():
    iql, b = learner(), make_batch()
    assert iql.advantage_weights(b, torch.full((64,), 1e6), 3.0).eq(100).all()


def test_weights_of_zero_stop_learning():
    iql, b = learner(), make_batch(weights=torch.zeros(64))
    before = [p.clone() for p in iql.critic.parameters()]
    iql.update(b)
    assert all(torch.equal(p, q) for p, q in zip(before, iql.critic.parameters(), strict=True))


def test_rates_never_change():
    iql, b = learner(), make_batch()
    for _ in range(3):
        iql.update(b)
    assert iql.actor_optimizer.learning_rate == 3e-4


def test_learns_the_better_action_of_a_bandit():
    # two dataset actions, +-0.5, of which +0.5 pays 1 and -0.5 nothing
    iql = learner(learning_rate=3e-3, inverse_temperature=10.0, expectile=0.5, tau=0.02)
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        good = torch.rand(64, generator=g) < 0.3
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        states = torch.zeros(64, 3)
        iql.update(one_step(states, actions, good.float()))
    assert (iql.act(torch.zeros(1, 3), deterministic=True) - 0.5).abs().max() < 0.1
    assert abs(iql.value(torch.zeros(1, 3)).item() - 0.3) < 0.1


def test_the_acting_actor_is_first_the_mean_of_all_actors_and_then_their_running_average():
    iql, actors = learner(actor_tau=0.4), []
    for scale in (1.0, 2.0, 4.0):
        iql.step_actor(sum((scale * parameter).sum() for parameter in iql.actor.parameters()))
        actors.append(iql.actor.log_std.detach().clone())
    assert torch.allclose(iql.acting_actor.log_std, 0.6 * (actors[0] + actors[1]) / 2 + 0.4 * actors[2])


def test_the_averaged_actor_acts_not_the_last_one():
    iql, b = learner(actor_tau=0.1, learning_rate=3e-2), make_batch()
    for _ in range(20):
        iql.update(b)
    averaged, last = (actor(b.observations).mode for actor in (iql.acting_actor, iql.actor))
    assert torch.equal(iql.act(b.observations, deterministic=True), averaged) and not torch.equal(averaged, last)


def test_the_actor_regresses_with_dropout():
    iql, b = learner(dropout=0.5), make_batch()
    q = iql.target_q(b)
    loss, policy = with_equal_draws(iql, lambda: iql.actor_loss(b, q), lambda: iql.actor(b.observations, rng=iql.rng))
    weights = (3 * (q - iql.value(b.observations))).exp().clamp(max=100).detach()
    torch.testing.assert_close(loss, -(weights * policy.log_prob(b.actions)).mean())
    assert not torch.equal(policy.mean, iql.actor(b.observations).mean)
