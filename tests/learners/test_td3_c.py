import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch

from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.learners.td3_c import TD3C


def learner(**settings):
    return TD3C(TD3C.Config(**({"hidden": (16, 16)} | settings)), SPEC, seed=0)


def moved(**settings):
    """An online learner whose policy is away from its target policy."""
    td3c = learner(**settings)
    td3c.phase = FINETUNE
    with torch.no_grad():
        for parameter in td3c.actor.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return td3c


def test_offline_it_is_td3_bc():
    one, other, b = learner(), TD3BC(TD3BC.Config(hidden=(16, 16)), SPEC, seed=0), make_batch()
    one.phase = PRETRAIN
    for _ in range(4):
        assert one.update(b) == other.update(b)
    assert torch.equal(one.actor_loss(b), other.actor_loss(b))


def test_the_online_actor_stays_near_its_target_policy_instead_of_the_data():
    td3c, b = moved(multiplier=3.0), make_batch(weights=torch.linspace(0, 2, 64))
    actions = td3c.actor(b.observations)
    q1 = td3c.critic(b.observations, actions)[0]
    distance = ((actions - td3c.target_actor(b.observations)) ** 2).mean(1)
    expected = (b.weights * (3.0 * distance - 2.5 / q1.abs().mean().item() * q1)).mean()
    torch.testing.assert_close(td3c.actor_loss(b), expected)
    assert torch.equal(td3c.actor_loss(b), td3c.actor_loss(b.where(actions=-b.actions)))
    assert 3.0 * distance.mean() > 0.01  # so that the term can be seen


@pytest.mark.parametrize(("radius", "sign"), [(1e-6, 1), (10.0, -1)])
def test_the_multiplier_grows_only_while_the_distance_exceeds_the_radius(radius, sign):
    td3c, b = moved(radius=radius), make_batch()
    before = td3c.multiplier().item()
    assert before == pytest.approx(1.0)
    for _ in range(4):
        metrics = td3c.update(b)
    assert sign * (td3c.multiplier().item() - before) > 0.005 and metrics["distance"] > 1e-6


def test_the_multipliers_loss_is_differentiated_by_the_multiplier_only():
    td3c = moved(radius=0.3)
    (slope,) = torch.autograd.grad(td3c.multiplier_loss(torch.tensor(0.5)), list(td3c.multiplier.parameters()))
    (parameter,) = td3c.multiplier.parameters()
    torch.testing.assert_close(slope, (0.3 - 0.5) * parameter.sigmoid())
