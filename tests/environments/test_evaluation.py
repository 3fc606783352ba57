"""Evaluation counts each episode once, repeats exactly, and shows the score that fits the task."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_diffusion.data.scores import ReferenceScores
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.environments.evaluation import Evaluation, Evaluator
from o2o_diffusion.types import EnvironmentSpec

HOPPER = EnvironmentSpec("Hopper-v5", max_episode_steps=300)


class Still:
    """Acts 0; its steps are counted."""

    def __init__(self, dim):
        self.dim, self.rows = dim, 0

    def act(self, observations, *, deterministic=False, rng=None):
        assert deterministic
        self.rows += len(observations)
        return torch.zeros(len(observations), self.dim)


class Drawing:
    """Draws its actions even when it is evaluated, and keeps them."""

    def __init__(self):
        self.actions = []

    def act(self, observations, *, deterministic=False, rng=None):
        assert deterministic and rng is not None
        self.actions.append(2 * rng.uniform(len(observations), 3) - 1)
        return self.actions[-1]


def reference(spec, seed, dim):
    environment = make_environment(spec)
    environment.reset(seed=seed)
    total, ended, steps = 0.0, False, 0
    while not ended:
        _, reward, terminated, truncated, _ = environment.step(np.zeros(dim, np.float32))
        total, ended, steps = total + float(reward), terminated or truncated, steps + 1
    return total, steps


@pytest.mark.parametrize("max_parallel", [1, 3, 10])
def test_exactly_the_episodes_asked_for_are_counted(max_parallel):
    agent = Still(3)
    evaluation = Evaluator(HOPPER, episodes=7, seed=100, max_parallel=max_parallel)(agent)
    expected = [reference(HOPPER, 100 + episode, 3) for episode in range(7)]
    assert list(zip(evaluation.returns, evaluation.lengths, strict=True)) == expected
    assert len(set(evaluation.lengths)) > 1  # episodes of different lengths, each counted once
    assert agent.rows == sum(evaluation.lengths)


def test_equal_agents_get_equal_evaluations():
    evaluator = Evaluator(HOPPER, episodes=4, seed=0, max_parallel=2)
    first = evaluator(Still(3))
    evaluator(Still(3), episodes=3)
    assert evaluator(Still(3)) == first and len(evaluator(Still(3), episodes=2).returns) == 2


def test_an_agent_that_draws_gets_the_same_numbers_at_every_call():
    evaluator, agents = Evaluator(HOPPER, episodes=4, seed=0, max_parallel=2), [Drawing() for _ in range(3)]
    first = evaluator(agents[0])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    evaluator(Still(3))
    assert evaluator(agents[1]) == first and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat(agents[0].actions), torch.cat(agents[1].actions))
    Evaluator(HOPPER, episodes=4, seed=1, max_parallel=2)(agents[2])
    assert not torch.equal(agents[0].actions[0], agents[2].actions[0])


def test_success_is_counted_in_goal_tasks():
    keys = ("desired_goal", "observation")
    spec = EnvironmentSpec("PointMaze_UMaze-v3", {"continuing_task": False}, 20, keys)
    evaluation = Evaluator(spec, episodes=3, seed=0)(Still(2))
    assert evaluation.successes is not None and len(evaluation.successes) == 3
    assert evaluation.unit == "success rate in %" and evaluation.score == 100 * np.mean(evaluation.successes)


def test_the_score_fits_the_task():
    references = ReferenceScores(0.0, 10.0, "Minari metadata")
    both = Evaluation((1.0, 3.0), (5, 7), (True, False), references, is_goal_task=False)
    assert both.score == both.normalized_score == 20 and "Minari metadata" in both.unit
    assert both.standard_error == pytest.approx(10 * np.sqrt(2) / np.sqrt(2))  # sd of (10, 30) over sqrt(2)
    assert both.mean_return == 2 and both.return_standard_error == pytest.approx(1) and both.mean_length == 6
    goal = Evaluation((1.0, 3.0), (5, 7), (True, False), references, is_goal_task=True)
    assert goal.score == 50 and goal.success_rate == 0.5
    plain = Evaluation((1.0, 3.0), (5, 7), None, None, is_goal_task=False)
    assert (plain.score, plain.unit, plain.normalized_score, plain.success_rate) == (2, "return", None, None)


def test_success_at_any_step_counts(monkeypatch):
    class Passing(gym.Env):
        """Succeeds at the step of its seed only, and ends after three."""

        observation_space = gym.spaces.Box(0, 1, (1,))

        def reset(self, *, seed=None, options=None):
            self.seed, self.steps = seed, 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.steps += 1
            return np.zeros(1, np.float32), 1.0, False, self.steps == 3, {"success": self.steps == self.seed}

    monkeypatch.setattr("o2o_diffusion.environments.evaluation.make_environment", lambda spec: Passing())
    assert Evaluator(HOPPER, episodes=5, seed=0)(Still(1)).successes == (False, True, True, True, False)
