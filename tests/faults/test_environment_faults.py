"""Faults of the environment and of the policy at its boundary: D3, D4, F12."""

import numpy as np
import pytest
import torch
from builders import LinearPolicy
from faults.toys import Faulty

from o2o_diffusion.environments.collector import Collector
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.environments.guard import StepFault
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import EnvironmentSpec, Source, TransitionSpec

SPEC = TransitionSpec(3, 1)
FAULTS = {
    "reset": "the environment's reset raised RuntimeError: no connection to the simulator",
    "raise": "the environment's step raised RuntimeError: no connection to the simulator",
    "hang": "the environment's step raised TimeoutError: no answer within 0.2 s",
    "nan": "the environment's step: observation has NaN or infinity",
    "reward": "the environment's step: reward has NaN or infinity",
    "large": "the environment's step: reward has a magnitude of 1e+38, expected at most 1e+10",
    "column": "the environment's step returned an observation of shape [4], expected [3]",
}


class Policy(LinearPolicy):
    """Explores with one action, or acts with NaN from the step `fails_at` on."""

    def __init__(self, fails_at: int = 10**9):
        self.fails_at, self.calls = fails_at, 0

    def act(self, observations, *, deterministic=False, rng=None):
        self.calls += 1
        action = torch.zeros(len(observations), 1) if deterministic else rng.uniform(len(observations), 1)
        return action if self.calls < self.fails_at else action * torch.nan


def collector(what: str) -> tuple[Collector, Replay]:
    return Collector(Faulty(what), SPEC, seed=0, exploration_seed=1, timeout=0.2), Replay(SPEC, {Source.ONLINE: 10})


def step(part: Collector, policy: Policy, replay: Replay) -> None:
    if not part.under_way:
        part.begin_episode()
    part.step(policy, replay)


@pytest.mark.parametrize("what", FAULTS)
def test_d3_d4_f12_a_fault_of_the_environment_is_one_line_and_changes_nothing(what):
    part, replay = collector(what)
    good, good_replay = collector("nothing")
    with pytest.raises(StepFault) as error:
        for _ in range(3):
            step(part, Policy(), replay)
    assert str(error.value) == FAULTS[what]
    done = len(replay.online)
    assert done == (0 if what == "reset" else 2)
    for _ in range(done):
        step(good, Policy(), good_replay)
    assert len(part.rows) == len(part.actions) == done and part.episode == (-1 if what == "reset" else 0)
    assert torch.equal(part.rng.uniform(3), good.rng.uniform(3))  # the action is drawn again when it is continued


def test_d2_an_action_that_is_not_finite_is_the_policys_fault():
    part, replay = collector("nothing")
    policy = Policy(fails_at=3)
    with pytest.raises(StepFault, match=r"^the policy's action \[nan\] is not finite$"):
        for _ in range(3):
            step(part, policy, replay)
    assert len(replay.online) == 2


@pytest.mark.parametrize("what", ["raise", "reward", "column"])
def test_d4_an_evaluation_reports_faults_too(what, monkeypatch):
    monkeypatch.setattr("o2o_diffusion.environments.evaluation.make_environment", lambda spec: Faulty(what))
    evaluator = Evaluator(EnvironmentSpec("Faulty"), episodes=2, seed=0)
    with pytest.raises(StepFault) as error:
        evaluator(Policy())
    assert str(error.value) == FAULTS[what]
    with pytest.raises(StepFault, match="policy's action"):
        evaluator(Policy(fails_at=1))


def test_the_largest_allowed_numbers_pass():
    part, replay = collector("nothing")
    step(part, Policy(), replay)
    assert np.isfinite(part.rewards).all() and replay.online.all().rewards.abs().max() == 0
