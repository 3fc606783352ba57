"""Factors of the MuJoCo model against what mechanics says."""

import numpy as np
import pytest

from o2o_diffusion.environments.environment import AgentEnvironment, make_environment
from o2o_diffusion.environments.physics import Physics, model_holder
from o2o_diffusion.environments.tasks import Task
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import EnvironmentSpec


def make(name: str, keys: tuple[str, ...] = (), **factors: float) -> AgentEnvironment:
    return make_environment(EnvironmentSpec(name, observation_keys=keys, physics=factors))


def accelerations(environment: AgentEnvironment, height: float = 10.0, control: float = 0.0) -> np.ndarray:
    """[nv] accelerations of a Hopper at rest in the air."""
    import mujoco

    body = model_holder(environment)
    body.set_state(np.eye(1, body.model.nq, 1)[0] * height, np.zeros(body.model.nv))
    body.data.ctrl[:] = control
    mujoco.mj_forward(body.model, body.data)  # pyright: ignore[reportAttributeAccessIssue]
    return body.data.qacc.copy()


def test_gravity_is_the_acceleration_of_a_free_fall():
    assert accelerations(make("Hopper-v5"))[1] == pytest.approx(-9.81)
    assert accelerations(make("Hopper-v5", gravity=0.5))[1] == pytest.approx(-4.905)


def test_twice_the_force_moves_twice_the_mass_alike():
    def pushed(**factors: float) -> np.ndarray:
        environment = make("InvertedPendulum-v5", gravity=1e-9, damping=1e-9, **factors)
        return accelerations(environment, height=0.3, control=1.0)

    assert pushed(mass=2.0, actuator=2.0) == pytest.approx(pushed(), rel=1e-5)
    assert pushed(actuator=2.0) == pytest.approx(2 * pushed(), rel=1e-5)
    assert pushed(mass=2.0) == pytest.approx(pushed() / 2, rel=1e-5)
    plain, heavy = (model_holder(make("InvertedPendulum-v5", mass=mass)).model for mass in (1.0, 2.0))
    assert heavy.dof_invweight0 == pytest.approx(plain.dof_invweight0 / 2, rel=1e-5)  # derived, used by contacts


@pytest.mark.parametrize("name, keys", [("Hopper-v5", ()), ("PointMaze_UMaze-v3", ("desired_goal", "observation"))])
def test_each_factor_changes_its_own_arrays_only(name, keys):
    def arrays(**factors: float) -> dict[str, np.ndarray]:
        model = model_holder(make(name, keys, **factors)).model
        names = ("geom_friction", "body_mass", "dof_damping", "actuator_gainprm")
        return {"gravity": model.opt.gravity, **{name: getattr(model, name) for name in names}}

    plain, changed = arrays(), dict(zip(("gravity", "friction", "mass", "damping", "actuator"), arrays(), strict=True))
    for factor, own in changed.items():
        found = arrays(**{factor: 2.0})
        for array, values in found.items():
            assert np.array_equal(values, plain[array] * (2.0 if array == own else 1.0)), (factor, array)


def test_a_task_acts_in_its_physics_and_its_data_keep_theirs(pendulum_table):
    nothing = Task(Task.Config(environment="Hopper-v5", physics=Physics(gravity=0.5, mass=2.0)))
    assert nothing.environment.physics == {"gravity": 0.5, "mass": 2.0}
    assert nothing.spec.data_environment == EnvironmentSpec("Hopper-v5")
    assert "Hopper-v5 with gravity x 0.5, mass x 2, observations" in nothing.description
    assert model_holder(nothing.make_environment()).model.opt.gravity[2] == -9.81 / 2
    assert Task(Task.Config(environment="Hopper-v5")).environment == EnvironmentSpec("Hopper-v5")


def test_mistakes_are_one_line():
    with pytest.raises(InputError, match=r"task\.physics: Pendulum-v1 is not a MuJoCo environment, its gravity can't"):
        Task(Task.Config(environment="Pendulum-v1", physics=Physics(gravity=0.5)))

    def settings(*overrides: str):
        return compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides)

    assert settings("task.physics.friction=2").components["task"].config.physics == Physics(friction=2.0)
    with pytest.raises(InputError, match=r"'task\.physics\.mass': 0\.0, expected more than 0"):
        settings("task.physics.mass=0")
    with pytest.raises(InputError, match="did you mean 'friction'"):
        settings("task.physics.frictoin=2")
