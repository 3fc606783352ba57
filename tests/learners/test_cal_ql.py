import math

import pytest
import torch
from builders import PRETRAIN, SPEC, make_batch, with_equal_draws

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.cal_ql import CalQL
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Cadence
from o2o_diffusion.types import Source, Transitions

SMALL = {"hidden": (32, 32), "penalty_actions": 4, "backup_actions": 3}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def cal_ql(**settings) -> CalQL:
    return CalQL(CalQL.Config(**(SMALL | settings)), SPEC, seed=0)


def cql() -> CQL:
    return CQL(CQL.Config(**SMALL), SPEC, seed=0)


def batch(returns: float) -> Transitions:
    factors = {"weights": torch.linspace(0.5, 2, 64), "regularization": torch.linspace(2, 0, 64)}
    return make_batch(**factors, returns=torch.full((64,), returns))


def weights(learner):
    networks = (learner.actor, learner.critic, learner.target_critic, learner.temperature, learner.multiplier)
    return [parameter.detach().clone() for network in networks for parameter in network.parameters()]


@pytest.mark.parametrize("returns", [0.05, -math.inf], ids=["known", "unknown"])
def test_critic_loss_against_its_equation(returns):
    learner, b = cal_ql(conservatism=3.0), batch(returns)
    loss, (target_q, (actions, log_density)) = with_equal_draws(
        learner, lambda: learner.conservative_loss(b)[0], lambda: (learner.target_q(b), learner.proposals(b))
    )
    expected = torch.zeros(())
    for member in range(2):
        data_q = learner.critic(b.observations, b.actions)[member]
        q = torch.stack([learner.critic(b.observations, actions[:, j])[member] for j in range(12)], dim=1)
        q = torch.where((torch.arange(12) >= 4) & (q < returns), returns, q)
        difference = (q - log_density).exp().sum(1).log() - data_q
        expected = expected + (b.weights * (data_q - target_q) ** 2).mean()
        expected = expected + 3 * (b.weights * b.regularization * difference).mean()
    torch.testing.assert_close(loss, expected)


def test_unknown_returns_make_it_cql_to_the_bit():
    calibrated, plain, b = cal_ql(), cql(), batch(-math.inf)
    for _ in range(3):
        calibrated.update(b)
        plain.update(b)
    assert all(torch.equal(w, v) for w, v in zip(weights(calibrated), weights(plain), strict=True))
    plain.update(b)
    calibrated.update(b.where(returns=torch.ones(64)))
    assert not all(torch.equal(w, v) for w, v in zip(weights(calibrated), weights(plain), strict=True))


def test_calibration_binds_the_policys_actions_only_where_q_is_below_the_returns():
    learner = cal_ql()
    q, returns = torch.randn(2, 5, 12, requires_grad=True), torch.linspace(-1, 1, 5)
    bounded = learner.calibrate(q, returns)
    assert torch.equal(bounded[..., :4], q[..., :4])
    assert torch.equal(bounded[..., 4:], q[..., 4:].clamp(min=returns[:, None]))
    (gradient,) = torch.autograd.grad(bounded.sum(), q)
    assert torch.equal(gradient == 0, (q < returns[:, None]) & (torch.arange(12) >= 4))


def test_updates_after_episodes_on_both_halves():
    pretrain, warmup, finetune = cal_ql().phases(Budget(pretrain_updates=10, online_steps=50, warmup_steps=10))
    assert finetune.cadence == Cadence(1, every=0)
    assert finetune.shares.offline == finetune.shares.online == 0.5
    assert pretrain.updates == 10 and not warmup.learns and warmup.cadence.updates == 0


def test_refuses_data_without_returns():
    replay = Replay(SPEC, {Source.OFFLINE: 64})
    cal_ql().begin_phase(PRETRAIN, replay)  # no data at all
    replay.offline.append(make_batch())
    cql().begin_phase(PRETRAIN, replay)
    with pytest.raises(InputError, match="none of the 64 offline rows has a return") as error:
        cal_ql().begin_phase(PRETRAIN, replay)
    assert "\n" not in str(error.value)
    replay.offline.fields["returns"][3] = 1.0
    cal_ql().begin_phase(PRETRAIN, replay)
