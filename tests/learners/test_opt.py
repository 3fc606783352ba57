import pytest
import torch
from builders import PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.learners.opt import OPT, OPTOnSPOT, masked_mean
from o2o_diffusion.learners.spot import SPOT
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.schedule import Budget, Cadence, Phase

ONLINE = Phase("finetune", env_steps=1000, cadence=Cadence(1))
META = Phase("online_pretrain", updates=10)


def learner(cls=OPT, **settings):
    small = {"hidden": (16, 16)} | ({"behavior_hidden": (16,)} if cls is OPTOnSPOT else {})
    return cls(cls.Config(**(small | settings)), SPEC, seed=0)


def mixed(**changes):
    return make_batch(sources=torch.arange(64) % 2, weights=torch.linspace(0, 2, 64), **changes)


def td(opt, b, target_q, rows, parameters=None):
    """Mean over `rows` of the weighted squared errors, summed over both critics."""
    chosen = dict(opt.online_critic.named_parameters()) if parameters is None else parameters
    q = torch.func.functional_call(opt.online_critic, chosen, (b.observations, b.actions))
    return (b.weights * ((q[0] - target_q) ** 2 + (q[1] - target_q) ** 2))[rows].mean()


def test_the_second_order_gradient_against_finite_differences():
    opt = learner(hidden=(), inner_rate=0.15)  # one layer, so that the loss is smooth
    b, target_q = mixed(), 3 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    weights = opt.online_critic.mlp.layers[0].weight
    offline = td(opt, b, target_q, b.sources == 0).item()

    def outer():
        loss = td(opt, b, target_q, b.sources == 0)
        names, values = zip(*opt.online_critic.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, values)
        stepped = {n: v - 0.15 * g for n, v, g in zip(names, values, gradients, strict=True)}
        return (loss + scale * td(opt, b, target_q, b.sources == 1, stepped)).item()

    scale = 0.0
    first = outer()
    scale = 1.0
    scale = min(1.0, offline / (outer() - first))
    (gradient,) = torch.autograd.grad(opt.meta_loss(b, target_q), [weights])
    opt_first = learner(hidden=(), inner_rate=0.15, first_order=True)
    opt_first.online_critic.load_state_dict(opt.online_critic.state_dict())
    first_weights = opt_first.online_critic.mlp.layers[0].weight
    (first_order,) = torch.autograd.grad(opt_first.meta_loss(b, target_q), [first_weights])
    for index in ((0, 0, 0), (1, 3, 0)):
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                weights[index] += step
            values.append(outer())
            with torch.no_grad():
                weights[index] -= step
        difference = (values[0] - values[1]) / 2e-2
        assert gradient[index].item() == pytest.approx(difference, rel=5e-3)
        assert first_order[index].item() != pytest.approx(difference, rel=1e-2)


def test_the_second_order_gradient_of_a_hidden_layer_against_plain_double_precision():
    opt, b, target_q = learner(hidden=(8,), inner_rate=0.1), mixed(), torch.linspace(-3, 3, 64)
    parameters = [p.detach().double().requires_grad_() for p in opt.online_critic.parameters()]
    x = torch.cat([b.observations, b.actions], dim=1).double()

    def loss(weights, rows):
        first, first_bias, last, last_bias = weights
        q = ((x @ first + first_bias).relu() @ last + last_bias).squeeze(-1)
        return (b.weights * ((q - target_q) ** 2).sum(0))[rows].mean()

    offline = loss(parameters, b.sources == 0)
    gradients = torch.autograd.grad(offline, parameters, create_graph=True)
    online = loss([p - 0.1 * g for p, g in zip(parameters, gradients, strict=True)], b.sources == 1)
    expected = torch.autograd.grad(offline + min(1.0, (offline / online).item()) * online, parameters)
    found = torch.autograd.grad(opt.meta_loss(b, target_q), list(opt.online_critic.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


def test_the_meta_loss_is_offline_plus_scaled_online_after_the_inner_step():
    opt, b, target_q = learner(inner_rate=0.1), mixed(), torch.linspace(-3, 3, 64)
    loss = td(opt, b, target_q, b.sources == 0)
    names, values = zip(*opt.online_critic.named_parameters(), strict=True)
    stepped = {n: v - 0.1 * g for n, v, g in zip(names, values, torch.autograd.grad(loss, values), strict=True)}
    loss, online = td(opt, b, target_q, b.sources == 0), td(opt, b, target_q, b.sources == 1, stepped)
    expected = loss + min(1.0, (loss / online).item()) * online
    torch.testing.assert_close(opt.meta_loss(b, target_q), expected)
    assert abs(online - td(opt, b, target_q, b.sources == 1)) > 0.01  # the inner step can be seen


def test_the_middle_phase_trains_the_new_critic_only():
    opt, b = learner(), mixed()
    opt.phase = META
    before = {name: part.clone() for name, part in opt.actor.state_dict().items()}
    old, new = opt.critic.mlp.layers[0].weight.clone(), opt.online_critic.mlp.layers[0].weight.clone()
    target = opt.target_online_critic.mlp.layers[0].weight.clone()
    assert set(opt.update(b)) == {"online_critic_loss"}
    assert torch.equal(opt.target_online_critic.mlp.layers[0].weight, target)
    opt.update(b)
    assert not torch.equal(opt.target_online_critic.mlp.layers[0].weight, target)
    assert torch.equal(opt.critic.mlp.layers[0].weight, old)
    assert all(torch.equal(part, before[name]) for name, part in opt.actor.state_dict().items())
    assert not torch.equal(opt.online_critic.mlp.layers[0].weight, new)


def test_kappa_moves_from_the_old_to_the_new_critic_with_the_steps():
    opt, b = learner(first_kappa=0.2, last_kappa=0.8, kappa_steps=100.0), make_batch()
    opt.begin_phase(PRETRAIN, make_replay())
    assert opt.kappa == 0 and torch.equal(
        opt.policy_q(b.observations, b.actions), opt.critic(b.observations, b.actions)[0]
    )
    opt.begin_phase(Phase("warmup", env_steps=10, learns=False), make_replay())
    assert opt.kappa == 0
    opt.begin_phase(ONLINE, make_replay())
    for updates, kappa in ((0, 0.2), (50, 0.5), (300, 0.8)):
        opt.num_updates = updates
        assert opt.kappa == pytest.approx(kappa)
    old, new = (critic(b.observations, b.actions) for critic in (opt.critic, opt.online_critic))
    torch.testing.assert_close(opt.policy_q(b.observations, b.actions), 0.2 * old[0] + 0.8 * new[0])
    torch.testing.assert_close(opt.values(b.observations, b.actions), 0.2 * old.amin(0) + 0.8 * new.amin(0))


def test_online_both_critics_learn_by_their_own_targets_and_the_actor_by_the_blend():
    opt, b = learner(), make_batch()
    opt.begin_phase(ONLINE, make_replay())
    target_q, actions = with_equal_draws(
        opt, lambda: opt.online_target_q(b), lambda: opt.target_actions(b.next_observations)
    )
    next_v = opt.target_online_critic(b.next_observations, actions).amin(0)
    torch.testing.assert_close(target_q, b.rewards + b.discounts * next_v)
    assert torch.equal(opt.actor_loss(b), -opt.policy_q(b.observations, opt.actor(b.observations)).mean())
    before = opt.target_online_critic.mlp.layers[0].weight.clone()
    assert set(opt.update(b) | opt.update(b)) == {"online_critic_loss", "critic_loss", "actor_loss"}
    assert not torch.equal(before, opt.target_online_critic.mlp.layers[0].weight)


def test_phases_and_fresh_moments_after_the_middle_one():
    opt = learner(online_pretrain_updates=9, batch_size=8)
    pretrain, warmup, meta, finetune = opt.phases(Budget(pretrain_updates=5, online_steps=50, warmup_steps=10))
    assert [phase.env_steps for phase in (pretrain, warmup, meta, finetune)] == [0, 10, 0, 40]
    assert (meta.updates, meta.batch_size, meta.shares.offline, meta.shares.online) == (9, 16, 0.5, 0.5)
    assert len(opt.phases(Budget(pretrain_updates=5, online_steps=0))) == 1
    for phase in (pretrain, warmup, meta):
        opt.begin_phase(phase, make_replay())
        opt.update(mixed())
        opt.update(mixed())
    opt.begin_phase(finetune, make_replay())
    assert not any(moment.any() for moment in (*opt.actor_optimizer.means, *opt.critic_optimizer.means))
    assert any(moment.any() for moment in opt.online_critic_optimizer.means)


def test_on_spot_the_actor_keeps_spots_support_term_and_offline_opt_is_its_base():
    opt, b = learner(OPTOnSPOT), make_batch()
    opt.begin_phase(ONLINE, make_replay())
    actions = opt.actor(b.observations)
    loss, support = with_equal_draws(
        opt, lambda: opt.actor_loss(b), lambda: opt.behavior.loss(b.observations, actions, opt.rng)
    )
    q = opt.policy_q(b.observations, actions)
    torch.testing.assert_close(loss, (0.25 * support - q / q.abs().mean().item()).mean())
    for cls, base in ((OPT, TD3BC), (OPTOnSPOT, SPOT)):
        opt = learner(cls)
        assert torch.equal(
            *with_equal_draws(opt, lambda o=opt: o.actor_loss(b), lambda o=opt, s=base: s.actor_loss(o, b))
        )


def test_a_mean_over_no_rows_is_zero():
    assert masked_mean(torch.ones(3), torch.zeros(3)) == 0
    assert masked_mean(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])) == 2
