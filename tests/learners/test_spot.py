import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.spot import SPOT
from o2o_diffusion.networks.vae import ActionVAE
from o2o_diffusion.schedule import Budget, Cadence, Phase


def learner(**settings):
    return SPOT(SPOT.Config(**({"hidden": (16, 16), "behavior_hidden": (16, 16)} | settings)), SPEC, seed=0)


def test_the_vaes_loss_against_its_closed_form():
    vae, b, rng = ActionVAE(3, 2, (8, 8), beta=0.7), make_batch(), ShardedRng(3)
    loss = vae.loss(b.observations, b.actions, rng)
    mean, log_std = vae.encode(b.observations, b.actions)
    z = mean + log_std.exp() * ShardedRng(3).normal(64, 4)
    q = torch.distributions.Normal(mean, log_std.exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(64, 4), 1.0)).mean(1)
    error = ((vae.decode(b.observations, z) - b.actions) ** 2).mean(1)
    torch.testing.assert_close(loss, error + 0.7 * kl)
    assert kl.mean() > 0.05


def test_the_vae_tells_actions_of_the_data_from_others():
    spot, g = learner(), torch.Generator().manual_seed(0)
    spot.phase = Phase("behavior", updates=1)
    before = [parameter.clone() for network in (spot.actor, spot.critic) for parameter in network.parameters()]
    for _ in range(200):
        states = torch.randn(64, 3, generator=g)
        metrics = spot.update(make_batch(observations=states, actions=0.8 * states[:, :2].sign()))
    after = [parameter for network in (spot.actor, spot.critic) for parameter in network.parameters()]
    assert set(metrics) == {"behavior_loss"} and all(map(torch.equal, before, after))
    states = torch.randn(200, 3, generator=g)
    here, there = (spot.behavior.loss(states, sign * 0.8 * states[:, :2].sign(), spot.rng) for sign in (1, -1))
    assert here.mean() < 0.6 * there.mean()


def test_the_actors_loss_is_q_over_its_mean_size_and_the_weighted_vae_loss():
    spot, b = learner(bc=3.0), make_batch(weights=torch.linspace(0, 2, 64))
    spot.phase = FINETUNE
    actions = spot.actor(b.observations)
    loss, support = with_equal_draws(
        spot, lambda: spot.actor_loss(b), lambda: spot.behavior.loss(b.observations, actions, spot.rng)
    )
    q1 = spot.critic(b.observations, actions)[0]
    torch.testing.assert_close(loss, (b.weights * (3.0 * support - q1 / q1.abs().mean().item())).mean())


def test_the_support_term_moves_the_actor_and_not_the_vae():
    spot, b = learner(), make_batch()
    before = [parameter.clone() for parameter in spot.behavior.parameters()]
    for _ in range(4):
        spot.update(b)
    assert all(map(torch.equal, before, spot.behavior.parameters()))


def test_the_weight_cools_to_a_fifth():
    spot = learner(bc=0.5, decay_steps=100.0)
    spot.begin_phase(PRETRAIN, make_replay())
    assert spot.bc == 0.5
    spot.begin_phase(Phase("finetune", env_steps=10, cadence=Cadence(2)), make_replay())
    weights = []
    for updates in (0, 100, 160, 400):
        spot.num_updates = updates
        weights.append(spot.bc)
    assert weights == pytest.approx([0.5, 0.25, 0.1, 0.1])


def test_the_vae_comes_first_and_only_before_pretraining():
    behavior, pretrain, *_ = learner(behavior_updates=7).phases(Budget(pretrain_updates=3, online_steps=5))
    assert (behavior.name, behavior.updates, behavior.shares.offline) == ("behavior", 7, 1) and pretrain.updates == 3
    assert [phase.name for phase in learner().phases(Budget(pretrain_updates=0, online_steps=5))] == ["finetune"]
