import math

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.learners.off2onrl import Off2OnRL

AGENTS, ACTIONS = 2, 3


def learner(phase=FINETUNE, **settings):
    small = {"hidden": (16, 16), "ensemble_size": 2 * AGENTS, "penalty_actions": ACTIONS, "output_gain": 1.0}
    off2on = Off2OnRL(Off2OnRL.Config(**(small | settings)), SPEC, seed=0)
    off2on.phase = phase
    return off2on


def test_the_ensembles_policy_has_the_moments_of_the_mixture():
    off2on, states = learner(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    base, agents = off2on.policy(states).base, off2on.actor(states).base
    g = torch.Generator().manual_seed(1)
    chosen = torch.randint(AGENTS, (200_000,), generator=g)
    u = agents.mean[chosen, 0] + agents.log_std[chosen, 0].exp() * torch.randn(200_000, 2, generator=g)
    torch.testing.assert_close(base.mean[0], u.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(base.log_std[0].exp(), u.std(0), atol=0.02, rtol=0)


def test_online_targets_share_the_ensembles_action_but_not_their_minima():
    off2on, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    loss, (actions, log_prob) = with_equal_draws(
        off2on,
        lambda: off2on.critic_loss(b),
        lambda: off2on.policy(b.next_observations).sample_with_log_prob(off2on.rng),
    )
    next_q, q = off2on.target_critic(b.next_observations, actions), off2on.critic(b.observations, b.actions)
    expected = 0.0
    for member in range(2 * AGENTS):
        pair = next_q[member - member % 2], next_q[member - member % 2 + 1]
        y = (b.rewards + 0.99 * (1 - b.terminations) * (torch.minimum(*pair) - log_prob)).detach()
        expected = expected + (b.weights * (q[member] - y) ** 2).mean()
    torch.testing.assert_close(loss, expected)
    assert (next_q.view(AGENTS, 2, 64).amin(1)[0] - next_q.view(AGENTS, 2, 64).amin(1)[1]).abs().mean() > 0.01


def test_offline_each_agent_is_cql_on_its_own_actions():
    off2on, b = learner(PRETRAIN, conservatism=3.0), make_batch(regularization=torch.linspace(2, 0, 64))
    (loss, penalty), (actions, log_density), next_actions = with_equal_draws(
        off2on,
        lambda: off2on.conservative_loss(b),
        lambda: off2on.proposals(b),
        lambda: (off2on.proposals(b), off2on.agents(b.next_observations).sample(off2on.rng))[1],
    )
    assert actions.shape == (AGENTS, 64, 3 * ACTIONS, 2)
    q, expected = off2on.critic(b.observations, b.actions), 0.0
    for member in range(2 * AGENTS):
        agent = member // 2
        next_q = off2on.target_critic(b.next_observations, next_actions[:, agent])[2 * agent : 2 * agent + 2]
        y = (b.rewards + 0.99 * (1 - b.terminations) * next_q.amin(0)).detach()
        proposed = off2on.critic(b.observations, actions[agent])[member]
        difference = (proposed - log_density[agent]).exp().sum(1).log() - q[member]
        expected = expected + ((q[member] - y) ** 2 + 3 * b.regularization * difference).mean()
    torch.testing.assert_close(loss, expected)
    assert penalty > 0.1


def test_proposals_have_the_densities_of_their_agents():
    off2on, b = learner(PRETRAIN), make_batch()
    actions, log_density = off2on.proposals(b)
    assert (log_density[..., :ACTIONS] == -2 * math.log(2)).all()
    for agent in range(AGENTS):
        for part, states in ((1, b.observations), (2, b.next_observations)):
            base = off2on.actor(states).base
            where = slice(part * ACTIONS, (part + 1) * ACTIONS)
            u = actions[agent, :, where].atanh()
            normal = torch.distributions.Normal(base.mean[agent][:, None], base.log_std[agent][:, None].exp())
            expected = (normal.log_prob(u) - (1 - u.tanh() ** 2).log()).sum(-1)
            found = log_density[agent, :, where]
            inside = (u.abs() < 3).all(-1)  # atanh is inexact near the bounds
            torch.testing.assert_close(found[inside], expected[inside].detach(), atol=0.02, rtol=0.02)


def test_actors_offline_and_online():
    off2on, b = learner(PRETRAIN), make_batch(weights=torch.linspace(0, 2, 64))
    (loss, _), (actions, log_prob) = with_equal_draws(
        off2on,
        lambda: off2on.actor_loss(b),
        lambda: off2on.agents(b.observations).sample_with_log_prob(off2on.rng),
    )
    expected = 0.0
    for agent in range(AGENTS):
        q = off2on.critic(b.observations, actions[:, agent])[2 * agent : 2 * agent + 2].amin(0)
        expected = expected + (b.weights * (log_prob[:, agent] - q)).mean()
    torch.testing.assert_close(loss, expected)
    off2on.phase = FINETUNE
    (loss, _), (actions, log_prob) = with_equal_draws(
        off2on,
        lambda: off2on.actor_loss(b),
        lambda: off2on.policy(b.observations).sample_with_log_prob(off2on.rng),
    )
    q = off2on.critic(b.observations, actions).view(AGENTS, 2, 64).amin(1).mean(0)
    torch.testing.assert_close(loss, (b.weights * (log_prob - q)).mean())


def test_the_switch_resets_the_temperature_and_the_moments():
    off2on, b = learner(PRETRAIN), make_batch()
    for _ in range(2):
        off2on.update(b)
    assert off2on.temperature() != 1 and any(moment.any() for moment in off2on.critic_optimizer.means)
    off2on.begin_phase(FINETUNE, make_replay())
    assert off2on.temperature() == 1 and not any(moment.any() for moment in off2on.critic_optimizer.means)
    assert "penalty" not in off2on.update(b)


def test_an_odd_number_of_critics_is_refused():
    with pytest.raises(ValueError, match="expected two critics per agent"):
        Off2OnRL.Config(ensemble_size=5)
