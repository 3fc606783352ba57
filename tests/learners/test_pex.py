from copy import deepcopy

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, WARMUP, make_batch, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.learners.pex import PEX
from o2o_diffusion.replay import Replay


def learner(**settings):
    return PEX(PEX.Config(**({"hidden": (32, 32)} | settings)), SPEC, seed=0)


def expanded(updates=5, **settings):
    """A learner that was pretrained and has begun its online phase."""
    pex = learner(**settings)
    pex.begin_phase(PRETRAIN, Replay(SPEC))
    for _ in range(updates):
        pex.update(make_batch())
    pex.begin_phase(WARMUP, Replay(SPEC))
    return pex


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


def equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def proposals(pex, b):
    """The two most probable actions and the least of the critics' values of each."""
    actions = pex.offline_actor(b.observations).mode, pex.acting_actor(b.observations).mode
    return actions, [pex.critic(b.observations, a).amin(0).detach() for a in actions]


def test_offline_it_is_iql():
    pex, iql = learner(), IQL(IQL.Config(hidden=(32, 32)), SPEC, seed=0)
    for _ in range(3):
        pex.update(make_batch())
        iql.update(make_batch())
    for name in ("actor", "value", "critic", "target_critic"):
        assert equal(weights(getattr(pex, name)), weights(getattr(iql, name)))
    states = make_batch().observations
    assert torch.equal(pex.act(states, rng=ShardedRng(0)), iql.act(states, rng=ShardedRng(0)))


def test_the_expansion_freezes_the_policy_and_begins_another():
    pex = learner()
    for _ in range(5):
        pex.update(make_batch())
    old = {name: weights(getattr(pex, name)) for name in ("acting_actor", "actor", "value", "critic", "target_critic")}
    pex.begin_phase(WARMUP, Replay(SPEC))
    assert equal(weights(pex.offline_actor), old["acting_actor"])
    assert not equal(weights(pex.actor), old["actor"]) and equal(weights(pex.actor), weights(pex.acting_actor))
    assert all(equal(weights(getattr(pex, name)), old[name]) for name in ("value", "critic", "target_critic"))
    assert not any(
        step
        for o in (pex.actor_optimizer, pex.critic_optimizer)
        for step in (*o.steps, *map(torch.count_nonzero, o.means))
    )
    online = weights(pex.actor)
    pex.begin_phase(FINETUNE, Replay(SPEC))  # the expansion is done once
    assert equal(weights(pex.actor), online) and equal(weights(pex.offline_actor), old["acting_actor"])


def test_a_copy_begins_where_the_offline_policy_ended():
    pex = expanded(init_online="copy")
    assert equal(weights(pex.actor), weights(pex.offline_actor))


def test_the_frozen_policy_is_unchanged_after_100_updates():
    pex = expanded()
    frozen, online = weights(pex.offline_actor), weights(pex.actor)
    for _ in range(100):
        pex.update(make_batch())
    assert equal(weights(pex.offline_actor), frozen) and not equal(weights(pex.actor), online)


def test_probabilities_are_a_softmax_over_the_two_values():
    pex, b = expanded(kappa=3.0), make_batch()
    (offline, online), q = proposals(pex, b)
    expected = torch.softmax(3 * torch.stack(q), dim=0)[1]
    found = pex.preference(b.observations, offline, online).sigmoid()
    torch.testing.assert_close(found, expected)
    draws = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0))
    taken = torch.stack([(pex.composite(b.observations, online, d) == online).all(1).float() for d in draws]).mean(0)
    torch.testing.assert_close(taken, expected, atol=0.04, rtol=0)


def test_a_large_kappa_takes_the_better_proposal_always():
    pex, b = expanded(kappa=1e9), make_batch()
    (offline, online), q = proposals(pex, b)
    best = torch.where((q[1] > q[0])[:, None], online, offline)
    for draw in (0.001, 0.5, 0.999):
        assert torch.equal(pex.composite(b.observations, online, draw), best)


def test_evaluation_takes_the_better_of_the_two_modes():
    pex, b = expanded(), make_batch()
    (offline, online), q = proposals(pex, b)
    rng = ShardedRng(0)
    best = torch.where((q[1] > q[0])[:, None], online, offline)
    assert torch.equal(pex.act(b.observations, deterministic=True, rng=rng), best)
    assert torch.equal(pex.act(b.observations, deterministic=True), best)
    assert torch.equal(rng.state_dict()["generator"], ShardedRng(0).state_dict()["generator"])  # nothing was drawn


def test_evaluation_can_draw_with_probability_epsilon():
    pex, states = expanded(evaluation_epsilon=0.1), torch.zeros(20_000, 3)
    actions = pex.act(states, deterministic=True, rng=ShardedRng(0))
    is_mode = [(actions == actor(states).mode).all(1) for actor in (pex.offline_actor, pex.acting_actor)]
    drawn = ~(is_mode[0] | is_mode[1])
    assert 0 < drawn.float().mean() < 0.1  # the online action was drawn, and it was chosen
    best = pex.act(states, deterministic=True)  # without rng as with epsilon 0
    assert torch.equal(best, expanded().act(states, deterministic=True))


def test_exploration_draws_from_both_and_stays_in_bounds():
    pex, states = expanded(kappa=0.0), torch.zeros(5000, 3)
    actions = pex.act(states, rng=ShardedRng(0))
    frozen = (actions == pex.offline_actor(states).mode).all(1).float().mean()
    assert abs(frozen - 0.5) < 0.03 and actions.abs().max() <= 1


@pytest.mark.parametrize("policy_target", ["composite", "replay"])
def test_the_policy_regresses_on_the_composites_or_the_rows_actions(policy_target):
    pex, b = expanded(policy_target=policy_target), make_batch(weights=torch.linspace(0, 2, 64))
    q = pex.target_q(b)
    loss, (noise, draws) = with_equal_draws(
        pex, lambda: pex.actor_loss(b, q), lambda: (pex.rng.normal(64, 2), pex.rng.uniform(64))
    )
    policy = torch.distributions.Normal(pex.actor(b.observations).mean, 1.0)
    actions = b.actions
    if policy_target == "composite":
        online = (policy.loc + noise).clamp(-1, 1).detach()
        actions = pex.composite(b.observations, online, draws)
        q = pex.target_critic(b.observations, actions).amin(0)
    advantage = q - pex.value(b.observations)
    expected = -(b.weights * (3 * advantage).exp().clamp(max=100).detach() * policy.log_prob(actions).sum(1)).mean()
    torch.testing.assert_close(loss, expected)


def test_kappa_relative_to_the_spread_of_q_does_not_feel_the_scale_of_rewards():
    b, choices = make_batch(), []
    for scale in (1.0, 100.0):
        pex = expanded(relative_kappa=True)
        with torch.no_grad():
            for parameter in (pex.critic.mlp.layers[-1].weight, pex.critic.mlp.layers[-1].bias):
                parameter *= scale
        pex.q_std.measure(pex.values(b.observations, b.actions))
        (offline, online), _ = proposals(pex, b)
        choices.append(pex.preference(b.observations, offline, online))
    torch.testing.assert_close(*choices)
    q = pex.values(b.observations, b.actions)
    torch.testing.assert_close(pex.q_std.std, q.std(correction=0).detach())


def test_log_prob_is_the_density_of_actions_that_are_proposed_and_taken():
    pex, states = expanded(), torch.zeros(1, 3)
    grid = torch.linspace(-6, 6, 601)
    actions = torch.cartesian_prod(grid, grid)
    density = pex.log_prob(states.expand(len(actions), -1), actions).exp()
    mass = density.sum().item() * (grid[1] - grid[0]).item() ** 2  # of the continuous part
    proposed = pex.policy(states.expand(20_000, -1)).sample(pex.rng)
    offline = pex.offline_actor(states.expand(20_000, -1)).mode
    taken = pex.preference(states.expand(20_000, -1), offline, proposed).sigmoid().mean().item()
    assert 0 < mass < 1 and abs(mass - taken) < 0.01


def test_an_offline_policy_is_required():
    pex = learner()
    pex.begin_phase(WARMUP, Replay(SPEC))
    with pytest.raises(InputError, match="has none: set pretrain_updates or pretrained"):
        pex.begin_episode()
    expanded(updates=1).begin_episode()


@pytest.mark.parametrize("online_updates", [None, 0, 3])
def test_resumes_in_both_phases(online_updates):
    pex = learner(actor_tau=0.1, relative_kappa=True)
    for _ in range(3):
        pex.update(make_batch())
    if online_updates is not None:
        pex.begin_phase(WARMUP, Replay(SPEC))
        for _ in range(online_updates):
            pex.update(make_batch())
    other = PEX(pex.config, SPEC, seed=9)
    other.load_state_dict(deepcopy(pex.state_dict()))
    for one in (pex, other):
        one.begin_phase(FINETUNE, Replay(SPEC))
        for _ in range(3):
            one.update(make_batch())
    for name in ("actor", "acting_actor", "offline_actor", "critic", "value"):
        assert equal(weights(getattr(pex, name)), weights(getattr(other, name)))
    states = make_batch().observations
    assert torch.equal(pex.act(states, rng=ShardedRng(0)), other.act(states, rng=ShardedRng(0)))


def test_the_frozen_policy_is_the_average_and_the_next_average_begins_anew():
    pex = learner(actor_tau=0.1, learning_rate=3e-2)
    for _ in range(20):
        pex.update(make_batch())
    averaged, last = weights(pex.acting_actor), weights(pex.actor)
    pex.begin_phase(WARMUP, Replay(SPEC))
    assert equal(weights(pex.offline_actor), averaged) and not equal(averaged, last)
    pex.update(make_batch())
    assert equal(weights(pex.acting_actor), weights(pex.actor))  # the mean of the one actor so far


def test_a_restored_expansion_may_begin_an_episode():
    pex, restored = expanded(), learner()
    restored.load_state_dict(deepcopy(pex.state_dict()))
    restored.begin_episode()
