import math

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.learners.famo2o import FamO2O, encode
from o2o_diffusion.replay import Replay


def learner(**settings):
    return FamO2O(FamO2O.Config(**({"hidden": (32, 32)} | settings)), SPEC, seed=0)


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)


def test_encoding_against_its_closed_form():
    beta = 3.7
    angles = [beta / 10_000 ** (2 * i / 6) for i in range(3)]
    expected = [function(u) for u in angles for function in (math.sin, math.cos)]
    torch.testing.assert_close(encode(torch.tensor([beta])), torch.tensor([expected]))


@pytest.mark.parametrize("is_online", [False, True])
@pytest.mark.parametrize(("center", "spread", "low", "high"), [(3.0, 2.0, 1, 5), (11.0, 3.0, 8, 14)])
def test_beta_stays_in_its_range(is_online, center, spread, low, high):
    famo2o = learner(inverse_temperature=center, spread=spread)
    famo2o.phase = FINETUNE if is_online else PRETRAIN
    beta = famo2o.training_beta(make_batch(5000))
    assert low <= beta.min() < low + 0.2 and high - 0.2 < beta.max() <= high
    chosen = famo2o.scale(famo2o.balance(make_batch().observations).mode)
    assert low < chosen.min() and chosen.max() < high


def test_uniform_betas_offline_and_chosen_ones_online():
    famo2o = learner()
    famo2o.begin_phase(PRETRAIN, Replay(SPEC))
    assert abs(famo2o.training_beta(make_batch(5000)).var() - 4**2 / 12) < 0.1
    famo2o.begin_phase(FINETUNE, Replay(SPEC))
    famo2o.balance.log_std.data.fill_(-10.0)
    expected = famo2o.scale(famo2o.balance(make_batch().observations).mode)
    torch.testing.assert_close(famo2o.training_beta(make_batch()), expected, atol=1e-2, rtol=0)


def test_balance_loss_reaches_the_balance_policy_only():
    famo2o, b = learner(), make_batch()
    loss, _ = famo2o.balance_loss(b)
    assert any(g.abs().sum() > 0 for g in gradients(loss, famo2o.balance))
    before = {name: [p.clone() for p in getattr(famo2o, name).parameters()] for name in ("actor", "critic", "value")}
    famo2o.update_balance(b)
    for name, parameters in before.items():
        for old, new in zip(parameters, getattr(famo2o, name).parameters(), strict=True):
            assert torch.equal(old, new) and new.grad is None


def test_universal_loss_leaves_the_balance_policy_alone():
    famo2o, b = learner(), make_batch()
    famo2o.phase = FINETUNE
    assert all(g is None for g in gradients(famo2o.actor_loss(b, torch.zeros(64)), famo2o.balance))


def test_the_balance_policy_steps_at_its_interval():
    famo2o = learner(balance_interval=3)
    stepped = ["balance_loss" in famo2o.update(make_batch()) for _ in range(6)]
    assert stepped == [True, False, False, True, False, False]


def test_the_temperature_rises_while_entropy_is_below_its_target():
    famo2o, b = learner(), make_batch()
    (gradient,) = gradients(famo2o.temperature_loss(b, torch.full((64,), 2.0)), famo2o.temperature)
    torch.testing.assert_close(gradient, torch.tensor(-2.0 + 0.5))  # entropy -2, target -0.5, temperature 1


def test_the_family_spans_cloning_and_improvement():
    # 30% of the data take +0.5, which pays 1: a small beta nearly clones, a large one improves
    famo2o = learner(learning_rate=3e-3, inverse_temperature=5.0, spread=5.0, expectile=0.5, balance_interval=1)
    g = torch.Generator().manual_seed(0)
    states = torch.zeros(64, 3)
    for _ in range(300):
        good = torch.rand(64, generator=g) < 0.3
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        famo2o.update(one_step(states, actions, good.float()))
    means = famo2o.actor(states[:2], encode(torch.tensor([0.5, 9.5]))).mode.mean(1)
    assert means[0] < 0.1 and means[1] > 0.35
    assert famo2o.scale(famo2o.balance(states[:1]).mode) > 5.0  # the critics like improvement


def test_the_averaged_actor_acts_not_the_last_one():
    famo2o, states = learner(actor_tau=0.1, learning_rate=3e-2), make_batch().observations
    for _ in range(20):
        famo2o.update(make_batch())
    beta = encode(famo2o.scale(famo2o.balance(states).mode))
    averaged, last = (actor(states, beta).mode for actor in (famo2o.acting_actor, famo2o.actor))
    assert torch.equal(famo2o.act(states, deterministic=True), averaged) and not torch.equal(averaged, last)


def test_universal_loss_is_a_regression_with_dropout_weighted_at_its_betas():
    famo2o, b, q = learner(dropout=0.5), make_batch(), torch.zeros(64)

    def plain():
        beta = famo2o.training_beta(b)
        return beta, famo2o.actor(b.observations, encode(beta), rng=famo2o.rng).log_prob(b.actions)

    loss, (beta, log_prob) = with_equal_draws(famo2o, lambda: famo2o.actor_loss(b, q), plain)
    weights = (-beta * famo2o.value(b.observations)).exp().clamp(max=100).detach()
    torch.testing.assert_close(loss, -(weights * log_prob).mean())
