import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.learners.aca import ACA
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.schedule import Budget, Cadence, Phase
from o2o_diffusion.types import TransitionSpec

ONE = TransitionSpec(observation_dim=3, action_dim=1)


def learner(spec=SPEC, **settings):
    return ACA(ACA.Config(**({"hidden": (16, 16)} | settings)), spec, seed=0)


def aligned(spec=SPEC, **settings):
    """An online learner whose policy, baseline and temperature were moved before the switch."""
    aca = learner(spec, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (aca.actor, aca.baseline, aca.temperature):
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    aca.begin_phase(PRETRAIN, make_replay(spec))
    aca.begin_phase(FINETUNE, make_replay(spec))
    return aca


def test_after_the_switch_the_residual_is_the_baseline_at_every_action():
    aca, b = aligned(density_weight=0.0, min_density_weight=0.0), make_batch()
    for actions in (b.actions, -b.actions, torch.zeros(64, 2)):
        torch.testing.assert_close(aca.critic(b.observations, actions), aca.state_values(b.observations))
        assert torch.equal(aca.critic(b.observations, actions), aca.target_critic(b.observations, actions))
    assert aca.state_values(b.observations).std() > 0.1 and aca.temperature() == 1


def test_after_the_switch_the_best_action_is_the_offline_policys_mode():
    aca, states = aligned(ONE), torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    grid = torch.linspace(-0.99, 0.99, 1001)[None, :, None].expand(8, -1, -1)
    q = aca.critic(states, grid).amin(0)  # [8, 1001]
    policy = aca.critic.reference(states)
    density = policy.repeat(1001).log_prob(grid)
    torch.testing.assert_close(density.gather(1, q.argmax(1, keepdim=True)), density.amax(1, keepdim=True))
    assert density.argmax(1).unique().numel() > 1
    assert torch.equal(aca.critic.reference(states).mode, aca.actor(states).mode)


def test_the_bound_keeps_the_log_density_finite_and_its_gradient():
    aca = aligned(width=2.0)
    states = torch.zeros(1, 3)
    aca.critic.reference.mlp.layers[-1].bias.data[2:] -= 3  # so that three deviations are inside the tanh
    base = aca.critic.reference(states).base
    far = (base.mean + 3 * base.log_std.exp()).tanh().requires_grad_()
    low = aca.critic.bounded_log_prob(states, far)
    policy = aca.critic.reference(states)
    bound = min(policy.log_prob((base.mean + side * 2 * base.log_std.exp()).tanh()).item() for side in (-1, 1))
    log_prob = policy.log_prob(far)
    torch.testing.assert_close(low, torch.nn.functional.softplus(log_prob - bound) + bound)
    assert log_prob < bound - 1 and bound < low < bound + 0.5
    (gradient,) = torch.autograd.grad(low.sum(), far)
    assert (gradient.sign() == -(far - base.mean.tanh()).sign()).all()
    near, exact = aca.critic.bounded_log_prob(states, policy.mode), policy.log_prob(policy.mode)
    torch.testing.assert_close(near, torch.nn.functional.softplus(exact - bound) + bound)


def test_offline_the_actors_loss_is_scaled_sac_and_cloning():
    aca = learner()
    aca.phase = PRETRAIN
    b = make_batch(weights=torch.linspace(0, 2, 64), regularization=torch.linspace(1, 0, 64))
    (loss, _), (actions, log_prob) = with_equal_draws(
        aca, lambda: aca.actor_loss(b), lambda: aca.policy(b.observations).sample_with_log_prob(aca.rng)
    )
    q = aca.critic(b.observations, actions).amin(0)
    scale = 30 / q.abs().mean().item()
    cloning = b.regularization * aca.policy(b.observations).log_prob(b.actions)
    torch.testing.assert_close(loss, (b.weights * (scale * (log_prob - q) - cloning)).mean())


def test_the_baselines_loss_against_its_closed_form():
    aca, b = aligned(), make_batch(weights=torch.linspace(0, 2, 64))
    with torch.no_grad():
        aca.temperature.log.fill_(-1.0)
    loss, (_, next_log_prob) = with_equal_draws(
        aca, lambda: aca.baseline_loss(b), lambda: aca.policy(b.next_observations).sample_with_log_prob(aca.rng)
    )
    z, next_z = aca.state_values(b.observations), aca.state_values(b.next_observations).amin(0)
    soft = next_log_prob + next_z - aca.temperature() * next_log_prob
    y = (b.rewards + 0.99 * (1 - b.terminations) * soft).detach()
    log_prob = aca.policy(b.observations).log_prob(b.actions).detach()
    torch.testing.assert_close(loss, sum((b.weights * (log_prob + member - y) ** 2).mean() for member in z))


def test_online_losses_are_sacs_with_the_log_density_in_every_value():
    aca, b = aligned(), make_batch()
    loss, target_q = with_equal_draws(aca, lambda: aca.critic_loss(b), lambda: aca.target_q(b))
    residual = aca.state_values(b.observations)  # [2, B]
    bonus = aca.critic.bounded_log_prob(b.observations, b.actions)
    torch.testing.assert_close(loss, sum(((member + bonus - target_q) ** 2).mean() for member in residual))
    expected, (actions, log_prob) = with_equal_draws(
        aca, lambda: aca.actor_loss(b)[0], lambda: aca.policy(b.observations).sample_with_log_prob(aca.rng)
    )
    value = residual.amin(0) + aca.critic.bounded_log_prob(b.observations, actions)
    torch.testing.assert_close(expected, (log_prob - value).mean())
    assert torch.equal(*with_equal_draws(aca, lambda: aca.actor_loss(b)[0], lambda: SAC.actor_loss(aca, b)[0]))


def test_only_the_residual_is_trained_online_and_the_reference_stays():
    aca, b = aligned(), make_batch()
    reference = [p.clone() for p in aca.critic.reference.parameters()]
    baseline = [p.clone() for p in aca.baseline.parameters()]
    before = aca.critic.mlp.layers[0].weight.clone()
    for _ in range(3):
        aca.update(b)
    assert all(torch.equal(p, q) for p, q in zip(reference, aca.critic.reference.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(baseline, aca.baseline.parameters(), strict=True))
    assert not torch.equal(before, aca.critic.mlp.layers[0].weight)
    assert aca.actor_optimizer.max_grad_norm == 0.25


def test_the_density_weights_schedule():
    aca = learner(decay_steps=100, min_density_weight=0.25)
    aca.begin_phase(PRETRAIN, make_replay())
    assert aca.critic.weight == 0
    aca.begin_phase(Phase("finetune", env_steps=200, cadence=Cadence(2)), make_replay())
    assert aca.critic.weight == aca.target_critic.weight == 1
    weights = []
    for updates in (0, 100, 150, 400):
        aca.num_updates = updates
        weights.append(aca.density_weight())
    assert weights == pytest.approx([1.0, 0.5, 0.25, 0.25])
    aca.num_updates = 20
    aca.update(make_batch())
    assert aca.critic.weight == aca.target_critic.weight == pytest.approx(0.9)
    *_, finetune = learner().phases(Budget(pretrain_updates=1, online_steps=10))
    assert finetune.shares.online == 1
