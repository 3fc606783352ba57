import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.boorl import BOORL
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.types import Source

AGENTS = 3


def learner(phase=FINETUNE, **settings):
    small = {"hidden": (16, 16), "ensemble_size": 2 * AGENTS}
    boorl = BOORL(BOORL.Config(**(small | settings)), SPEC, seed=0)
    boorl.phase = phase
    return boorl


def own(critic, observations, actions):
    """[2N, B], critics 2i and 2i + 1 at the actions [N, B, A] of agent i, one after the other."""
    return torch.stack([critic(observations, actions[i // 2])[i] for i in range(2 * AGENTS)])


def test_a_critics_own_values_are_those_of_each_member_at_its_actions():
    critic, states = Critic(3, 2, (8, 8), ensemble_size=2), torch.randn(5, 3)
    actions, many = torch.randn(2, 5, 2), torch.randn(2, 5, 4, 2)
    for member in range(2):
        torch.testing.assert_close(critic.own(states, actions)[member], critic(states, actions[member])[member])
        torch.testing.assert_close(critic.own(states, many)[member], critic(states, many[member])[member])


def test_each_agent_has_its_own_pairs_target():
    boorl, b = learner(), make_batch(weights=torch.linspace(0, 2, 64))
    loss, noise = with_equal_draws(boorl, lambda: boorl.critic_loss(b), lambda: boorl.rng.normal(64, AGENTS, 2))
    noise = (0.2 * noise).clamp(-0.5, 0.5).transpose(0, 1)
    actions = (boorl.target_actor(b.next_observations) + noise).clamp(-1, 1)
    next_q, expected = own(boorl.target_critic, b.next_observations, actions), 0.0
    for agent in range(AGENTS):
        next_v = torch.minimum(next_q[2 * agent], next_q[2 * agent + 1])
        y = (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach()
        for member in (2 * agent, 2 * agent + 1):
            expected = expected + (b.weights * (boorl.critic(b.observations, b.actions)[member] - y) ** 2).mean()
    torch.testing.assert_close(loss, expected)


def test_online_each_actor_maximizes_its_first_critic_and_offline_clones_too():
    boorl = learner()
    b = make_batch(weights=torch.linspace(0, 2, 64), regularization=torch.linspace(1, 0, 64))
    actions = boorl.actor(b.observations)
    q = own(boorl.critic, b.observations, actions)[::2]
    torch.testing.assert_close(boorl.actor_loss(b), -(b.weights * q).mean(1).sum())
    boorl.phase = PRETRAIN
    seen = boorl.bootstrap(b)
    expected = 0.0
    for agent in range(AGENTS):
        cloning = b.regularization * ((actions[agent] - b.actions) ** 2).mean(1)
        scale = 2.5 / q[agent].abs().mean().item()
        expected = expected + (seen[agent] * b.weights * (cloning - scale * q[agent])).mean()
    torch.testing.assert_close(boorl.actor_loss(b), expected)


def test_an_agent_leaves_out_its_own_tenth_of_the_offline_rows_always_the_same():
    boorl = learner(PRETRAIN, kept=0.8)
    b = make_batch(20_000, rows=torch.arange(20_000))
    seen = boorl.bootstrap(b)
    assert seen.unique().tolist() == pytest.approx([0.0, 1.25])
    assert ((seen > 0).float().mean(1) - 0.8).abs().max() < 0.01
    both = ((seen[0] > 0) & (seen[1] > 0)).float().mean()
    assert abs(both - 0.64) < 0.01  # independent
    assert torch.equal(boorl.bootstrap(b.where(rows=torch.arange(20_000).flip(0))), seen.flip(1))
    assert (boorl.bootstrap(b.where(sources=torch.full((20_000,), int(Source.ONLINE)))) == 1).all()
    boorl.phase = FINETUNE
    assert (boorl.bootstrap(b) == 1).all()


def test_actions_are_drawn_with_probabilities_softmax_of_the_agents_values():
    boorl = learner(exploration_noise=0.0)
    with torch.no_grad():
        boorl.critic.mlp.layers[-1].weight.mul_(30)
    state = torch.randn(1, 3, generator=torch.Generator().manual_seed(1))
    proposals = boorl.actor(state)[:, 0]
    q = own(boorl.critic, state, boorl.actor(state)).view(AGENTS, 2).amin(1)
    actions = boorl.act(state.expand(20_000, -1), rng=ShardedRng(0))
    chosen = torch.cdist(actions, proposals).argmin(1)
    frequencies = torch.bincount(chosen, minlength=AGENTS) / 20_000
    torch.testing.assert_close(frequencies, q.softmax(0).detach(), atol=0.012, rtol=0)
    assert frequencies.max() - frequencies.min() > 0.1
    mean = boorl.act(state, deterministic=True)
    torch.testing.assert_close(mean, proposals.mean(0, keepdim=True).detach())


def test_per_episode_one_agent_acts_until_the_next_reset():
    boorl, state = learner(exploration_noise=0.0, redraw="episode"), torch.randn(1, 3)
    proposals, agents = boorl.actor(state)[:, 0], []
    for _ in range(30):
        boorl.begin_episode()
        actions = boorl.act(state.expand(5, -1), rng=ShardedRng(0))
        (agent,) = torch.cdist(actions, proposals).argmin(1).unique().tolist()
        agents.append(agent)
    assert set(agents) == set(range(AGENTS))


def test_online_the_actors_wait_for_five_critic_steps_and_the_critics_targets_do_not():
    boorl, b = learner(), make_batch()
    names = []
    for _ in range(5):
        before = boorl.target_critic.mlp.layers[0].weight.clone()
        names.append("actor_loss" in boorl.update(b))
        assert not torch.equal(before, boorl.target_critic.mlp.layers[0].weight)
    assert names == [False] * 4 + [True]


def test_an_odd_number_of_critics_is_refused():
    with pytest.raises(ValueError, match="expected two critics per agent"):
        BOORL.Config(ensemble_size=5)
