"""Which rows train an actor: generated actions are not cloned, and generated states count as much as set."""

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, build, make_batch, make_replay, names, with_equal_draws

from o2o_diffusion.learners.awac import AWAC
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.famo2o import FamO2O
from o2o_diffusion.learners.famo2o_cql import FamO2OCQL
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.learners.pex import PEX
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.learners.weights import reweighted
from o2o_diffusion.networks.mlp import EnsembleLayerNorm
from o2o_diffusion.types import Source

SOURCES = torch.arange(64) % 4
GENERATED = SOURCES >= Source.GENERATED_OFFLINE
Q = torch.linspace(-1, 1, 64)
CLONING = {
    IQL: lambda learner, b: learner.actor_loss(b, Q),
    FamO2O: lambda learner, b: learner.actor_loss(b, Q),
    PEX: lambda learner, b: learner.actor_loss(b, Q),
    AWAC: lambda learner, b: learner.actor_loss(b),
    TD3BC: lambda learner, b: learner.actor_loss(b),
}
MAXIMIZING = {
    SAC: lambda learner, b: learner.actor_loss(b)[0],
    CQL: lambda learner, b: learner.actor_loss(b)[0],
    FamO2O: lambda learner, b: learner.balance_loss(b)[0],
    FamO2OCQL: lambda learner, b: learner.balance_loss(b),
    TD3BC: lambda learner, b: learner.actor_loss(b),
}


def make(cls, **settings):
    learner = cls(cls.Config(hidden=(16, 16), **settings), SPEC, seed=0)
    learner.begin_phase(PRETRAIN, make_replay())
    return learner


def mixed(*, changed=False):
    """A batch of all sources; if `changed`, with other generated observations and actions."""
    b = make_batch(sources=SOURCES)
    return b.with_rows(GENERATED, make_batch(seed=1, sources=SOURCES)) if changed else b


def losses(learner, loss, *batches):
    return with_equal_draws(learner, *((lambda b=b: loss(learner, b)) for b in batches))


def test_weights_are_relative_and_their_mean_is_one():
    b = make_batch(4, sources=torch.tensor([0, 1, 2, 3]), weights=torch.tensor([1.0, 2, 1, 2]))
    torch.testing.assert_close(reweighted(b, 0.0), torch.tensor([2.0, 4, 0, 0]))
    torch.testing.assert_close(reweighted(b, 0.2), torch.tensor([1.0, 2, 0.2, 0.4]) / 0.6)
    assert torch.equal(reweighted(b, 1.0), b.weights)
    assert torch.equal(reweighted(b[2:], 0.0), torch.zeros(2))
    stacked = reweighted(b.map(lambda field: field[None].expand(3, *field.shape)), 0.2)  # [K, B]
    torch.testing.assert_close(stacked[1], reweighted(b, 0.2))


@pytest.mark.parametrize("cls", CLONING)
def test_only_actions_of_real_rows_are_cloned(cls):
    one, other = mixed(), mixed().where(actions=mixed(changed=True).actions)
    before, after = losses(make(cls), CLONING[cls], one, other)
    assert torch.equal(before, after)
    before, after = losses(make(cls, clone_generated=True), CLONING[cls], one, other)
    assert not torch.isclose(before, after)


def test_the_gradient_of_a_real_row_does_not_depend_on_the_generated_share():
    iql, b = make(IQL), mixed()
    torch.testing.assert_close(iql.actor_loss(b, Q), iql.actor_loss(b[~GENERATED], Q[~GENERATED]))


@pytest.mark.parametrize("cls", MAXIMIZING)
def test_generated_states_count_by_their_share_where_an_actor_maximizes_q(cls):
    extra = {"bc": 0.0} if cls is TD3BC else {}
    for share, equal in ((0.0, True), (0.5, False)):
        before, after = losses(
            make(cls, actor_generated_share=share, **extra), MAXIMIZING[cls], mixed(), mixed(changed=True)
        )
        assert torch.equal(before, after) is equal


def test_composite_actions_are_not_generated():
    pex = make(PEX, actor_generated_share=0.5)
    pex.phase = FINETUNE
    torch.testing.assert_close(pex.cloning_weights(mixed()), reweighted(mixed(), 0.5))


OWN_ENSEMBLES = ("boorl", "enoto", "off2onrl", "ooo")
"""Learners whose critics are not the base's: ensembles of agents, or a learner inside another."""


@pytest.mark.parametrize(
    "path", [path for path in names("learner") if path.stem not in OWN_ENSEMBLES], ids=lambda path: path.stem
)
def test_every_critic_can_be_a_normalized_ensemble(path):
    learner = build("learner", path, layer_norm="true", ensemble_size=3)
    b = make_batch()
    for critic in (learner.critic, learner.target_critic):
        assert critic(b.observations, b.actions).shape == (3, 64)
        assert all(isinstance(norm, EnsembleLayerNorm) for norm in critic.mlp.norms)
    target = learner.target_critic(b.observations, b.actions)
    pairs = torch.stack([target[[i, j]].amin(0) for i, j in ((0, 1), (0, 2), (1, 2), (0, 0), (1, 1), (2, 2))])
    assert (pairs == learner.target_values(b.observations, b.actions)).all(-1).any()
    assert all(value.isfinite() for value in learner.update(make_batch()).values())
