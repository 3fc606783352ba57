import pytest
from builders import SPEC, make_replay

from o2o_diffusion.learners.rebrac import ReBRAC
from o2o_diffusion.learners.schedules import linear
from o2o_diffusion.schedule import Cadence, Phase


def test_linear_is_constant_outside_its_range():
    assert [linear(2.0, 1.0, x) for x in (-1, 0, 0.25, 1, 3)] == [2.0, 2.0, 1.75, 1.0, 1.0]


def test_steps_are_counted_by_the_updates_of_the_phase():
    learner = ReBRAC(ReBRAC.Config(hidden=(4,)), SPEC, seed=0)
    learner.num_updates = 7
    assert learner.online_steps == 0
    learner.begin_phase(Phase("finetune", env_steps=10, cadence=Cadence(4)), make_replay())
    learner.num_updates = 27
    assert learner.online_steps == pytest.approx(5)
    restored = ReBRAC(ReBRAC.Config(hidden=(4,)), SPEC, seed=1)
    restored.load_state_dict(learner.state_dict())
    assert restored.online_steps == pytest.approx(5)
    learner.begin_phase(Phase("retrain", updates=5), make_replay())
    assert learner.online_steps == 0
