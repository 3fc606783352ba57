import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.learners.baq import BAQ
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.schedule import Cadence, Phase


def online(**settings):
    """A learner in its online phase, which has measured the median distance."""
    baq = BAQ(BAQ.Config(**({"hidden": (16, 16), "adapt_steps": 100} | settings)), SPEC, seed=0)
    baq.begin_phase(PRETRAIN, make_replay())
    baq.begin_phase(Phase("finetune", env_steps=1000, cadence=Cadence(1)), make_replay())
    return baq


def test_the_unit_of_distance_is_the_datas_median():
    baq, rows = online(), make_replay().offline.all()
    distance = ((rows.actions - baq.behavior.actor(rows.observations)) ** 2).mean(1)
    torch.testing.assert_close(baq.behavior.median, distance.median().detach())
    assert 0.1 < baq.behavior.median < 1


@pytest.mark.parametrize("steps", [0, 25, 100, 300])
def test_backups_far_from_the_behavior_count_little_until_kappa_is_one(steps):
    baq, b = online(), make_batch(weights=torch.linspace(0, 2, 64))
    baq.num_updates = steps
    kappa = min(steps / 100, 1)
    actions = baq.actor(b.next_observations)
    distance = ((actions - baq.behavior.actor(b.next_observations)) ** 2).mean(1)
    expected = (1 - kappa) * (-distance / baq.behavior.median).exp() + kappa
    weights = baq.confidence(b)
    torch.testing.assert_close(weights, expected.detach())
    loss, weighted, plain = with_equal_draws(
        baq,
        lambda: baq.critic_loss(b),
        lambda: TD3BC.critic_loss(baq, b.where(weights=b.weights * weights)),
        lambda: TD3BC.critic_loss(baq, b),
    )
    assert torch.equal(loss, weighted) and torch.equal(loss, plain) == (kappa == 1)


def test_the_actor_is_held_to_the_behavior_while_kappa_is_below_one():
    baq, b = online(bc=0.7), make_batch(weights=torch.linspace(0, 2, 64))
    baq.num_updates = 25
    actions = baq.actor(b.observations)
    q1 = baq.critic(b.observations, actions)[0]
    held = ((actions - baq.behavior.actor(b.observations)) ** 2).mean(1)
    expected = (b.weights * (0.75 * 0.7 * held - 2.5 / q1.abs().mean().item() * q1)).mean()
    torch.testing.assert_close(baq.actor_loss(b), expected)


def test_offline_it_is_td3_bc():
    baq, b = online(), make_batch()
    baq.phase = PRETRAIN
    for name in ("critic_loss", "actor_loss"):
        base = getattr(TD3BC, name)
        assert torch.equal(*with_equal_draws(baq, lambda n=name: getattr(baq, n)(b), lambda f=base: f(baq, b))), name
    baq.phase = FINETUNE
    assert not torch.equal(baq.actor_loss(b), TD3BC.regularizer(baq, b, baq.actor(b.observations)).mean())


def test_the_behavior_clones_the_data_in_its_own_phase():
    baq, g = online(learning_rate=3e-3), torch.Generator().manual_seed(0)
    baq.phase = Phase("behavior", updates=1)
    for _ in range(200):
        states = torch.randn(64, 3, generator=g)
        loss = baq.update(make_batch(observations=states, actions=0.8 * states[:, :2].tanh()))["behavior_loss"]
    assert loss < 0.01
