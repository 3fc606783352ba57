from dataclasses import fields

import torch
from builders import SPEC, make_batch, one_step, with_equal_draws

from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.gcql import GCQL
from o2o_diffusion.schedule import Budget, Cadence

SMALL = {"hidden": (32, 32), "penalty_actions": 4}


def learner(**settings):
    return GCQL(GCQL.Config(**(SMALL | settings)), SPEC, seed=0)


def test_with_regularization_everywhere_it_is_an_ensemble_of_cql():
    gcql, b = learner(), make_batch()
    own = {field.name: getattr(gcql.config, field.name) for field in fields(CQL.Config)}
    cql = CQL(CQL.Config(**own), SPEC, seed=1)
    cql.load_state_dict(gcql.state_dict())
    for _ in range(3):
        ours, theirs = gcql.update(b), cql.update(b)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for one, other in zip(gcql.critic.parameters(), cql.critic.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_batch_without_regularization_is_learned_from_greedily():
    gcql, b = learner(), make_batch(regularization=torch.zeros(64))
    (loss, penalty), sac_loss = with_equal_draws(gcql, lambda: gcql.conservative_loss(b), lambda: gcql.critic_loss(b))
    assert penalty == 0 and torch.equal(loss, sac_loss)


def test_each_row_is_regularized_by_its_own_factor():
    gcql, b = learner(), make_batch()
    gcql.target_q = lambda b: torch.zeros(len(b))
    gcql.proposals = lambda b: (b.actions[:, None], torch.zeros(len(b), 1))
    half = torch.arange(64) < 32
    _, whole = gcql.conservative_loss(b)
    parts = [gcql.conservative_loss(b.where(regularization=rows.float()))[1] for rows in (half, ~half)]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_targets_are_of_random_pairs_and_the_actor_ascends_the_mean():
    gcql, b = learner(), make_batch()
    drawn = {tuple(sorted(gcql.draw_members(gcql.config.subset_size).tolist())) for _ in range(200)}
    assert len(drawn) == 10  # all pairs of five
    (loss, log_prob), actions = with_equal_draws(
        gcql, lambda: gcql.actor_loss(b), lambda: gcql.policy(b.observations).sample(gcql.rng)
    )
    torch.testing.assert_close(loss, (log_prob - gcql.critic(b.observations, actions).mean(0)).mean())


def test_blocks_of_updates_on_whole_batches():
    pretrain, finetune = learner().phases(Budget(pretrain_updates=10, online_steps=3000, updates_per_step=10))
    assert pretrain.updates == 10 and finetune.cadence == Cadence(10, every=1000)
    assert finetune.shares.whole_batches and finetune.shares.offline == finetune.shares.online == 0.5
    short = learner(block_steps=50).phases(Budget(pretrain_updates=0, online_steps=100))
    assert short[0].cadence == Cadence(1, every=50)
    few = learner(block_steps=1000).phases(Budget(pretrain_updates=0, online_steps=100, warmup_steps=20))
    assert few[-1].cadence == Cadence(1, every=80)  # one block of all there is, not none


def test_the_policys_spread_is_clamped():
    log_std = learner().policy(1e6 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))).base.log_std
    assert log_std.min() == -5 and log_std.max() == 2


def test_learns_the_better_action_of_the_data():
    gcql = learner(learning_rate=3e-3, actor_learning_rate=3e-3, conservatism=1.0, tau=0.02)
    g, states = torch.Generator().manual_seed(0), torch.zeros(64, 3)
    for step in range(200):
        good = torch.rand(64, generator=g) < 0.5
        actions = torch.where(good, 0.5, -0.5)[:, None].expand(-1, 2)
        b = one_step(states, actions, good.float())
        gcql.update(b.where(regularization=torch.full((64,), float(step % 2))))
    assert (gcql.act(states[:1], deterministic=True) - 0.5).abs().max() < 0.25
