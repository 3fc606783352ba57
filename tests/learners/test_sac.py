import pytest
import torch
from builders import SPEC, make_batch, make_replay, one_step, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Budget
from o2o_diffusion.types import Source

RLPD = {"ensemble_size": 10, "layer_norm": True, "mean_q": True, "actor_interval": 20, "pretrain": False}


def learner(**settings):
    return SAC(SAC.Config(**({"hidden": (32, 32)} | settings)), SPEC, seed=0)


@pytest.mark.parametrize("entropy_backup", [True, False])
def test_critic_target_with_and_without_entropy(entropy_backup):
    sac, b = learner(entropy_backup=entropy_backup), make_batch()
    policy = sac.policy(b.next_observations)
    loss, (next_actions, log_prob) = with_equal_draws(
        sac, lambda: sac.critic_loss(b), lambda: policy.sample_with_log_prob(sac.rng)
    )
    next_v = sac.target_critic(b.next_observations, next_actions).amin(0) - entropy_backup * log_prob
    y = (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach()
    torch.testing.assert_close(loss, ((sac.critic(b.observations, b.actions) - y) ** 2).sum(0).mean())


def test_subsets_are_drawn_without_replacement_and_differ():
    sac = learner(ensemble_size=10)
    drawn = [tuple(sorted(sac.draw_members(2).tolist())) for _ in range(200)]
    assert all(len(set(pair)) == 2 for pair in drawn) and len(set(drawn)) > 30
    assert sac.draw_members(10) is None


def test_the_target_is_the_minimum_of_the_drawn_members():
    sac, b = learner(ensemble_size=10), make_batch()
    sac.draw_members = lambda size: torch.tensor([7, 2])
    policy = sac.policy(b.next_observations)
    target_q, (next_actions, log_prob) = with_equal_draws(
        sac, lambda: sac.target_q(b), lambda: policy.sample_with_log_prob(sac.rng)
    )
    next_v = sac.target_critic(b.next_observations, next_actions)[[7, 2]].amin(0) - log_prob
    torch.testing.assert_close(target_q, b.rewards + 0.99 * (1 - b.terminations) * next_v)


@pytest.mark.parametrize(("mean_q", "reduce"), [(False, torch.amin), (True, torch.mean)])
def test_actor_loss_uses_minimum_or_mean(mean_q, reduce):
    sac, b = learner(ensemble_size=3, mean_q=mean_q), make_batch()
    policy = sac.policy(b.observations)
    (loss, log_prob), actions = with_equal_draws(sac, lambda: sac.actor_loss(b), lambda: policy.sample(sac.rng))
    torch.testing.assert_close(loss, (log_prob - reduce(sac.critic(b.observations, actions), 0)).mean())


def test_target_entropy_counts_action_dimensions():
    sac, b = learner(target_entropy=-0.5), make_batch()
    loss = sac.temperature_loss(b, torch.full((64,), 3.0))
    torch.testing.assert_close(loss, torch.tensor(-3.0 + 0.5 * 2))  # entropy -3, target -1, temperature 1


def test_actor_waits_for_its_interval():
    sac = learner(actor_interval=3)
    assert ["actor_loss" in sac.update(make_batch()) for _ in range(6)] == [False, False, True] * 2


def test_uniform_actions_at_the_start_only():
    phases = learner(random_steps=30).phases(Budget(pretrain_updates=5, online_steps=100, warmup_steps=40))
    found = [(phase.name, phase.env_steps, phase.random_actions, phase.learns) for phase in phases]
    assert found == [
        ("pretrain", 0, False, True), ("random", 30, True, False), ("warmup", 10, False, False),
        ("finetune", 60, False, True),
    ]  # fmt: skip
    assert not any(phase.random_actions for phase in learner().phases(Budget(pretrain_updates=5, online_steps=100)))


def test_deterministic_actions_are_the_mode():
    sac, states = learner(), torch.randn(5, 3)
    assert torch.equal(sac.act(states, deterministic=True), sac.policy(states).mode)


def test_nothing_is_learned_in_the_random_steps_and_some_steps_must_be_left():
    phases = learner(random_steps=30).phases(Budget(pretrain_updates=0, online_steps=50, warmup_steps=10))
    assert [(phase.env_steps, phase.learns) for phase in phases] == [(30, False), (20, True)]
    with pytest.raises(InputError, match="SAC warms up for 50 environment steps, which leaves none of online_steps=50"):
        learner(random_steps=50).phases(Budget(pretrain_updates=0, online_steps=50))


def test_rlpd_draws_half_and_half_without_pretraining():
    sac = learner(**RLPD)
    (warmup, finetune) = sac.phases(Budget(pretrain_updates=100, online_steps=50, warmup_steps=10, updates_per_step=20))
    assert (warmup.name, warmup.env_steps, warmup.learns) == ("warmup", 10, False)
    assert (finetune.env_steps, finetune.cadence.updates) == (40, 20)
    replay = make_replay(offline=500, online=7)
    sampler = Mixture(Mixture.Config(ramp=0), SPEC, seed=0)
    for _ in range(20):
        sources = sampler.sample(replay, finetune.shares, 256).sources
        assert (sources == Source.OFFLINE).sum() == (sources == Source.ONLINE).sum() == 128


def test_learns_the_best_action_of_a_bandit():
    # reward -(a - 0.6)^2 after one step: the optimum is 0.6
    sac = learner(learning_rate=3e-3, target_entropy=-3.0, tau=0.02)
    states, rng = torch.zeros(64, 3), ShardedRng(0)
    for _ in range(400):
        actions = sac.act(states, rng=rng)
        rewards = -(actions - 0.6).square().sum(1)
        sac.update(one_step(states, actions, rewards))
    assert (sac.act(states[:1], deterministic=True) - 0.6).abs().max() < 0.1
    assert sac.temperature() < 0.5
