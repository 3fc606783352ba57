from itertools import combinations

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.enoto import ENOTO
from o2o_diffusion.learners.ensembles import best, drawn, pair_minima, weighted_min_pair
from o2o_diffusion.schedule import Budget


def learner(**settings):
    small = {"hidden": (16, 16), "penalty_actions": 2, "ensemble_size": 4}
    enoto = ENOTO(ENOTO.Config(**(small | settings)), SPEC, seed=0)
    enoto.phase = FINETUNE
    return enoto


@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_weighted_min_pair_is_the_mean_over_all_pairs(size):
    q = torch.randn(size, 7, generator=torch.Generator().manual_seed(size))
    pairs = torch.stack([torch.minimum(q[i], q[j]) for i, j in combinations(range(size), 2)])
    torch.testing.assert_close(weighted_min_pair(q, 0), pairs.mean(0))
    torch.testing.assert_close(weighted_min_pair(q[None, :, :, None], -3), pairs.mean(0)[None, :, None])


def test_pair_minima_are_over_neighbors():
    q = torch.tensor([[3.0], [1.0], [2.0], [5.0]])
    assert pair_minima(q).tolist() == [[1.0], [2.0]]


def test_candidates_are_picked_by_score_or_drawn_by_softmax():
    actions = torch.arange(6.0).reshape(1, 3, 2).expand(20_000, -1, -1)
    logits = torch.tensor([0.0, 1.0, -0.5]).expand(20_000, -1)
    assert best(actions[:2], logits[:2]).tolist() == [[2.0, 3.0]] * 2
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    chosen = drawn(actions, logits, uniform)[:, 0] / 2
    frequencies = torch.bincount(chosen.long(), minlength=3) / 20_000
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=0.01, rtol=0)
    assert drawn(actions[:1], logits[:1], torch.tensor([1.0])).tolist() == [[4.0, 5.0]]


def test_the_online_critic_loss_against_its_equation():
    enoto, b = learner(agreement=500.0), make_batch(weights=torch.linspace(0, 2, 64))
    loss, (next_q, log_prob) = with_equal_draws(enoto, lambda: enoto.critic_loss(b), lambda: enoto.next_q(b, None))
    next_q, log_prob = next_q.squeeze(-1), log_prob.squeeze(-1)
    pairs = torch.stack([torch.minimum(next_q[i], next_q[j]) for i, j in combinations(range(4), 2)]).mean(0)
    y = (b.rewards + 0.99 * (1 - b.terminations) * (pairs - enoto.temperature() * log_prob)).detach()
    weight = (1 / (1 + (500.0 * next_q.mean(1).std()).exp()) + 0.5).item()
    td = sum((b.weights * (member - y) ** 2).mean() for member in enoto.critic(b.observations, b.actions))
    torch.testing.assert_close(loss, weight * td)
    assert 0.5 < weight < 0.95


def test_offline_it_is_cql_with_its_penalty_and_online_there_is_none():
    enoto, b = learner(), make_batch()
    enoto.phase = PRETRAIN
    other = CQL(
        CQL.Config(**{name: getattr(enoto.config, name) for name in CQL.Config.__dataclass_fields__}), SPEC, seed=0
    )
    assert enoto.update(b) == other.update(b)
    enoto.phase = FINETUNE
    assert "penalty" not in enoto.update(b)


def test_explores_with_the_candidate_of_highest_mean_plus_optimistic_spread():
    enoto, states = learner(candidates=6, optimism=2.0), torch.randn(5, 3)
    explored = enoto.act(states, rng=ShardedRng(3))
    candidates = enoto.policy(states).repeat(6).sample(ShardedRng(3)).detach()
    assert candidates.shape == (5, 6, 2)
    for row in range(5):
        scores = []
        for candidate in candidates[row]:
            q = enoto.critic(states[row : row + 1], candidate[None])
            scores.append((q.mean() + 2.0 * q.std()).item())
        assert torch.equal(explored[row], candidates[row, scores.index(max(scores))])
    assert torch.equal(enoto.act(states, deterministic=True), enoto.policy(states).mode.detach())


def test_online_rows_only_and_one_learning_rate():
    enoto = learner()
    *_, finetune = enoto.phases(Budget(pretrain_updates=1, online_steps=10))
    assert finetune.shares.online == 1
    assert enoto.actor_optimizer.learning_rate == 3e-5
    enoto.begin_phase(finetune, make_replay())
    assert enoto.actor_optimizer.learning_rate == 3e-4
