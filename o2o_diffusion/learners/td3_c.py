"""TD3-C: conservative policy optimization online (Luo et al., 2023), https://arxiv.org/abs/2303.17396, re-derived."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.networks.actors import Softplus
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.types import Metrics, Transitions


class TD3C(TD3BC):
    """TD3+BC offline; online TD3 whose policy is kept within `radius` of its own slowly moving target policy.

    Online, cloning is replaced by eta * |pi(s) - pi'(s)|^2 / A. The multiplier eta, a softplus, grows while the mean
    distance exceeds `radius`. The paper states the idea; the form of the constraint, its radius and the multiplier's
    rate and first value are not known to us and are this package's choice, as is keeping `alpha` online.
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Chosen values; TD3+BC's are the paper's base."""

        radius: Annotated[float, "bound on the mean squared distance to the target policy, per dimension", Gt(0)] = 0.01
        multiplier: Annotated[float, "initial multiplier of the distance", Gt(0)] = 1.0
        multiplier_rate: Annotated[float, "Adam learning rate of the multiplier", Gt(0)] = 1e-2

    config: Config

    def build(self) -> None:
        """Create TD3+BC's networks and the multiplier."""
        super().build()
        self.multiplier = Softplus(self.config.multiplier).to(self.device)
        self.multiplier_optimizer = Optimizer(self.multiplier.parameters(), self.config.multiplier_rate)

    def distance(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], |pi(s) - pi'(s)|^2 / A, `actions` = pi(s) and pi' the target policy."""
        return (actions - self.target_actor(batch.observations)).square().mean(-1)

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], TD3+BC's cloning offline; online, the distance to the target policy times the multiplier."""
        if not self.phase.is_online:
            return super().regularizer(batch, actions)
        return self.multiplier().detach()[..., None] * self.actor_weights(batch) * self.distance(batch, actions)

    def multiplier_loss(self, distance: Tensor) -> Tensor:
        """eta * (radius - distance): eta grows while the mean `distance` [] exceeds the radius."""
        return self.multiplier() * (self.config.radius - distance)

    def update_actor(self, batch: Transitions) -> Metrics:
        """Take TD3's actor step and, online, one step of the multiplier on the distance before it."""
        if not self.phase.is_online:
            return super().update_actor(batch)
        distance = mean(self.distance(batch, self.actor(batch.observations)))
        metrics = super().update_actor(batch) | {"distance": distance}
        metrics["multiplier_loss"] = self.multiplier_optimizer.step(self.multiplier_loss(distance))
        return metrics | {"multiplier": self.multiplier().detach()}
