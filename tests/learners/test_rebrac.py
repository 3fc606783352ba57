import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.learners.rebrac import ReBRAC
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.schedule import Budget, Cadence, Phase

SMALL = {"hidden": (16, 16), "batch_size": 64}


def learner(**settings):
    return ReBRAC(ReBRAC.Config(**(SMALL | settings)), SPEC, seed=0)


def known(**changes):
    g = torch.Generator().manual_seed(5)
    return make_batch(next_actions=torch.randn(64, 2, generator=g).tanh(), **changes)


def test_the_critics_target_is_lowered_by_the_summed_distance_to_the_next_data_action():
    rebrac, b = learner(critic_bc=0.7), known()
    target_q, noise = with_equal_draws(rebrac, lambda: rebrac.target_q(b), lambda: rebrac.rng.normal(64, 2))
    next_actions = (rebrac.target_actor(b.next_observations) + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
    penalty = ((next_actions - b.next_actions) ** 2).sum(1)
    next_v = torch.minimum(*rebrac.target_critic(b.next_observations, next_actions)) - 0.7 * penalty
    torch.testing.assert_close(target_q, (b.rewards + 0.99 * (1 - b.terminations) * next_v).detach())
    assert 0.7 * penalty.mean() > 0.1  # so that the term can be seen


def test_a_row_without_a_next_action_and_online_rows_have_no_penalty():
    rebrac, free, b = learner(critic_bc=0.7), learner(critic_bc=0.0), known()
    unknown = b.where(next_actions=torch.full((64, 2), torch.nan))
    one, other = rebrac.target_q(unknown), free.target_q(b)
    assert torch.equal(one, other)
    rebrac.phase = FINETUNE
    assert torch.equal(rebrac.target_q(b), free.target_q(b))


def test_the_actors_loss_is_the_summed_distance_against_min_q_over_its_mean_size():
    rebrac, weights, regularization = learner(bc=0.3), torch.linspace(0, 2, 64), torch.linspace(1, 0, 64)
    b = known(weights=weights, regularization=regularization)
    actions = rebrac.actor(b.observations)
    q = torch.minimum(*rebrac.critic(b.observations, actions))
    penalty = 0.3 * regularization * ((actions - b.actions) ** 2).sum(1)
    torch.testing.assert_close(rebrac.actor_loss(b), (weights * (penalty - q / q.abs().mean().item())).mean())


def test_without_penalties_ten_updates_are_td3s_with_layer_norm_and_a_min_q_actor():
    class MinTD3(TD3BC):
        def policy_q(self, observations, actions):
            return self.critic(observations, actions).amin(-2)

        def q_scale(self, q):
            return 1 / q.detach().abs().mean()

    settings = SMALL | {"layer_norm": True, "normalize_observations": False, "learning_rate": 1e-3, "bc": 0.0}
    learners = learner(bc=0.0, critic_bc=0.0), MinTD3(TD3BC.Config(**settings), SPEC, seed=0)
    for number in range(10):
        for one in learners:
            one.update(known(weights=torch.ones(64)).where(rewards=torch.full((64,), float(number))))
    for name in ("actor", "critic", "target_actor", "target_critic"):
        pairs = zip(*(getattr(one, name).parameters() for one in learners), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs), name


def test_the_actors_penalty_decays_linearly_over_the_online_phase():
    rebrac = learner(bc=0.4, min_decay=0.25)
    phase = Phase("finetune", env_steps=100, cadence=Cadence(2))
    rebrac.begin_phase(phase, make_replay())
    weights = []
    for updates in (0, 100, 200, 300):
        rebrac.num_updates = updates
        weights.append(rebrac.bc)
    assert weights == pytest.approx([0.4, 0.4 * 0.625, 0.1, 0.1])
    rebrac.begin_phase(PRETRAIN, make_replay())
    assert rebrac.bc == 0.4


def test_batches_and_learning_rates_change_online():
    rebrac = learner(online_batch_size=8)
    pretrain, finetune = rebrac.phases(Budget(pretrain_updates=5, online_steps=10))
    assert (pretrain.batch_size, finetune.batch_size) == (64, 8)
    rates = []
    for phase in (pretrain, finetune):
        rebrac.begin_phase(phase, make_replay())
        rates.append(rebrac.actor_optimizer.learning_rate)
    assert rates == [1e-3, 3e-4]
