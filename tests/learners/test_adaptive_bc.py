import numpy as np
import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.learners.adaptive_bc import AdaptiveBC, episode_returns
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Episode, Source


def learner(**settings):
    settings = {"hidden": (16, 16), "low_return": 0.0, "high_return": 1.0} | settings
    return AdaptiveBC(AdaptiveBC.Config(**settings), SPEC, seed=0)


def episode(score: float, steps: int = 1000) -> Episode:
    rewards = np.full(steps, score / steps, np.float32)
    return Episode(np.zeros((steps + 1, 3), np.float32), np.zeros((steps, 2), np.float32), rewards, False)


@pytest.mark.parametrize(
    ("average", "score", "change"),
    [(0.5, 0.5, -0.0165), (0.5, 0.2, 0.03 - 0.0165), (1.2, 1.2, 0.0045)],
    ids=["loosens below the target", "tightens after a drop", "tightens above the target"],
)
def test_the_controllers_three_cases(average, score, change):
    adaptive = learner()
    adaptive.begin_phase(FINETUNE, make_replay())
    adaptive.controller.weight.fill_(0.2)
    adaptive.controller.average.fill_(average)
    adaptive.controller.episodes.fill_(1)
    adaptive.end_episode(episode(score))
    assert adaptive.bc == pytest.approx(0.2 + change, abs=1e-6)
    assert adaptive.controller.average == pytest.approx(0.95 * average + 0.05 * score, abs=1e-6)


def test_the_weight_stays_in_its_range_and_a_short_episode_moves_it_less():
    adaptive = learner(online_bc=0.3, proportional=1.0)
    adaptive.begin_phase(FINETUNE, make_replay())
    assert adaptive.bc == 0.3
    adaptive.end_episode(episode(0.5))
    assert adaptive.bc == 0 and adaptive.controller.average == pytest.approx(0.5)
    adaptive.controller.average.fill_(3.0)
    adaptive.end_episode(episode(3.0))
    assert adaptive.bc == 0.3
    adaptive = learner()
    adaptive.begin_phase(FINETUNE, make_replay())
    adaptive.end_episode(episode(0.5, steps=100))
    assert adaptive.bc == pytest.approx(0.4 - 0.00165, abs=1e-6)


def test_scores_run_from_the_lowest_to_the_highest_offline_return():
    replay = Replay(SPEC, {Source.OFFLINE: 10})
    replay.load([episode(-3.0, steps=4), episode(5.0, steps=6)])
    torch.testing.assert_close(episode_returns(replay), torch.tensor([-3.0, 5.0]))
    adaptive = learner(low_return=None, high_return=None)
    adaptive.begin_phase(PRETRAIN, replay)
    adaptive.begin_phase(FINETUNE, replay)
    adaptive.end_episode(episode(1.0))
    assert adaptive.controller.average == pytest.approx(0.5)
    adaptive.begin_phase(PRETRAIN, replay)
    assert not episode_returns(Replay(SPEC)).any()


def test_the_actor_maximizes_the_mean_of_ten_critics_against_weighted_cloning():
    adaptive, b = learner(bc=0.7), make_batch(weights=torch.linspace(0, 2, 64))
    actions = adaptive.actor(b.observations)
    q = adaptive.critic(b.observations, actions).mean(0)
    cloning = 0.7 * ((actions - b.actions) ** 2).mean(1)
    assert len(adaptive.critic(b.observations, actions)) == 10
    torch.testing.assert_close(adaptive.actor_loss(b), (b.weights * (cloning - q / q.abs().mean().item())).mean())


def test_targets_are_minima_of_random_pairs():
    adaptive, b = learner(), make_batch()

    def expected():
        actions = adaptive.target_actions(b.next_observations)
        pair = adaptive.draw_members(2)
        return b.rewards + b.discounts * adaptive.target_critic(b.next_observations, actions)[pair].amin(0)

    target_q, other = with_equal_draws(adaptive, lambda: adaptive.target_q(b), expected)
    torch.testing.assert_close(target_q, other.detach())
