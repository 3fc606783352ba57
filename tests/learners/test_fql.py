import pytest
import torch
from builders import SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.fql import FQL
from o2o_diffusion.networks.flow import Flow


def learner(**settings):
    return FQL(FQL.Config(**({"hidden": (16, 16)} | settings)), SPEC, seed=0)


def test_the_flows_loss_is_zero_for_the_exact_velocity_and_grows_with_its_error():
    fql, b = learner(), make_batch()
    for error in (0.0, 0.3):

        def exact(observations, x, t, error=error):  # x = (1 - t) x0 + t a, so a - x0 = (a - x) / (1 - t)
            return (b.actions - x) / (1 - t) + error

        fql.flow.forward = exact
        torch.testing.assert_close(fql.flow_loss(b), torch.tensor(error**2), atol=1e-4, rtol=1e-4)


def test_euler_steps_of_a_known_field():
    flow, noise = Flow(3, 2, (8,)), torch.tensor([[0.5, -0.5]])
    flow.forward = lambda observations, x, t: -x  # ten steps multiply by 0.9 each
    torch.testing.assert_close(flow.integrate(torch.zeros(1, 3), noise, 10), noise * 0.9**10)
    flow.forward = lambda observations, x, t: 2 * t.expand_as(x)  # the sum of 2 (k / 10) / 10 for k < 10
    torch.testing.assert_close(flow.integrate(torch.zeros(1, 3), 0 * noise, 10), torch.full((1, 2), 0.9))
    flow.forward = lambda observations, x, t: torch.full_like(x, 50.0)
    assert (flow.integrate(torch.zeros(1, 3), noise, 10) == 1).all()


def test_the_actors_loss_against_its_closed_form():
    fql, b = learner(alpha=3.0), make_batch(weights=torch.linspace(0, 2, 64), regularization=torch.linspace(1, 0, 64))
    loss, z = with_equal_draws(fql, lambda: fql.actor_loss(b), lambda: fql.rng.normal(64, 2))
    actions, flowed = fql.actor(b.observations, z), fql.flow.integrate(b.observations, z, 10)
    distillation = b.regularization * ((actions - flowed) ** 2).mean(1)
    q = fql.critic(b.observations, actions.clamp(-1, 1)).mean(0)
    torch.testing.assert_close(loss, (b.weights * (3.0 * distillation - q)).mean())
    fql = learner(alpha=0.0, normalize_q=True)
    loss, z = with_equal_draws(fql, lambda: fql.actor_loss(b), lambda: fql.rng.normal(64, 2))
    q = fql.critic(b.observations, fql.actor(b.observations, z).clamp(-1, 1)).mean(0)
    torch.testing.assert_close(loss, -(b.weights * q).mean() / q.abs().mean().item())


def test_without_alpha_the_data_do_not_reach_the_actor_and_neither_loss_reaches_the_flow():
    fql, b = learner(alpha=0.0), make_batch()
    loss, other = with_equal_draws(
        fql, lambda: fql.actor_loss(b), lambda: fql.actor_loss(b.where(regularization=torch.zeros(64)))
    )
    assert torch.equal(loss, other)
    for parameter in fql.flow.parameters():
        (gradient,) = torch.autograd.grad(learner().actor_loss(b) + 0 * parameter.sum(), [parameter])
        assert not gradient.any()


@pytest.mark.parametrize("target", ["mean", "min"])
def test_the_critics_target(target):
    fql, b = learner(target=target), make_batch(weights=torch.linspace(0, 2, 64))
    loss, z = with_equal_draws(fql, lambda: fql.critic_loss(b), lambda: fql.rng.normal(64, 2))
    next_q = fql.target_critic(b.next_observations, fql.actor(b.next_observations, z).clamp(-1, 1))
    next_v = next_q.mean(0) if target == "mean" else next_q.amin(0)
    y = (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach()
    q1, q2 = fql.critic(b.observations, b.actions)
    torch.testing.assert_close(loss, (b.weights * ((q1 - y) ** 2 + (q2 - y) ** 2)).mean())


def test_acts_by_the_one_step_policy_and_refuses_a_density():
    fql, states = learner(), torch.randn(5, 3)
    expected = fql.actor(states, ShardedRng(3, shared=False).normal(5, 2)).clamp(-1, 1)
    assert torch.equal(fql.act(states, rng=ShardedRng(3, shared=False)), expected.detach())
    assert torch.equal(fql.act(states, deterministic=True), fql.actor(states, torch.zeros(5, 2)).clamp(-1, 1).detach())
    with pytest.raises(TypeError, match="no density"):
        fql.log_prob(states, torch.zeros(5, 2))


def test_learns_the_better_of_two_actions():
    # the data take -0.5 and +0.5 equally often, and +0.5 pays 1: the flow has both modes, the actor the better one
    fql = learner(hidden=(32, 32), learning_rate=3e-3, alpha=0.3, layer_norm=False, tau=0.05)
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        good = torch.rand(64, generator=g) < 0.5
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        fql.update(one_step(torch.zeros(64, 3), actions, good.float()))
    flowed = fql.flow.integrate(torch.zeros(200, 3), torch.randn(200, 2, generator=g), 10)
    acted = fql.act(torch.zeros(200, 3), rng=ShardedRng(0))
    assert 0.2 < (flowed.mean(1) < 0).float().mean() < 0.8 and (acted.mean(1) > 0.2).float().mean() > 0.9
