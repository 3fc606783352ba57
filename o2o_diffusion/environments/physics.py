"""Change the physics of a MuJoCo environment, so that it differs from the one that the data came from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import gymnasium as gym
from annotated_types import Gt

from o2o_diffusion.errors import InputError

HOLDERS = ("point_env", "ant_env", "robot_env")
"""Attributes of gymnasium_robotics environments that hold the environment with the MuJoCo model."""

FIELDS = {
    "friction": ("geom_friction",),
    "mass": ("body_mass", "body_inertia"),
    "damping": ("dof_damping",),
    "actuator": ("actuator_gainprm", "actuator_biasprm", "actuator_forcerange"),
}
"""Arrays of the MuJoCo model that each factor multiplies."""


@dataclass(frozen=True)
class Physics:
    """Factors of the online environment's MuJoCo model; 1 leaves it as it is."""

    gravity: Annotated[float, "factor of gravity", Gt(0)] = 1.0
    friction: Annotated[float, "factor of all contact friction", Gt(0)] = 1.0
    mass: Annotated[float, "factor of all masses and inertias", Gt(0)] = 1.0
    damping: Annotated[float, "factor of all joint damping", Gt(0)] = 1.0
    actuator: Annotated[float, "factor of all actuator forces", Gt(0)] = 1.0

    @property
    def factors(self) -> dict[str, float]:
        """The factors other than 1, by name."""
        return {name: factor for name, factor in asdict(self).items() if factor != 1.0}


def model_holder(environment: gym.Env) -> Any:
    """The unwrapped environment, or the part of it that holds the MuJoCo model."""
    whole: Any = environment.unwrapped
    return next((getattr(whole, name) for name in HOLDERS if hasattr(whole, name)), whole)


def change_physics(environment: gym.Env, factors: Mapping[str, float]) -> None:
    """Multiply the model's physics by `factors`; raises InputError if the environment has no MuJoCo model."""
    import mujoco as module

    mujoco: Any = module  # its stubs lack these names
    model: Any = getattr(model_holder(environment), "model", None)
    if not isinstance(model, mujoco.MjModel):
        name = environment.spec.id if environment.spec else type(environment.unwrapped).__name__
        raise InputError(f"task.physics: {name} is not a MuJoCo environment, its {', '.join(factors)} can't be changed")
    for name, factor in factors.items():
        for field in FIELDS.get(name, ()):
            getattr(model, field)[:] *= factor
    model.opt.gravity[:] *= factors.get("gravity", 1.0)
    mujoco.mj_setConst(model, mujoco.MjData(model))  # quantities derived from masses


def show_physics(factors: Mapping[str, float]) -> str:
    """The factors for a message, such as " with gravity x 0.5"; "" if there are none."""
    return " with " + ", ".join(f"{name} x {factor:g}" for name, factor in factors.items()) if factors else ""
