"""FamO2O on CQL: a family of policies and a choice among them (Wang et al., 2023), https://arxiv.org/abs/2310.17966."""

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.famo2o import ENCODING_DIM, Family, encode
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor
from o2o_diffusion.schedule import Budget, Cadence
from o2o_diffusion.types import Metrics, Transitions


class FamO2OCQL(Family, CQL):
    """CQL with a universal policy pi(a | s, e(beta)) and a balance policy pi(beta | s), both trained in both phases.

    Beta weighs Q against entropy. The policy that acts, and whose actions in s' the critics see, has the most probable
    beta of its own state; the penalty's actions in s are drawn at the betas at which the actor is trained.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Beta lies in `inverse_temperature` +- `spread`: [0.5, 1.5]. Critics have layer normalisation, CQL's none."""

        actor_learning_rate: Annotated[float | None, "rate for actor and temperature; null: learning_rate"] = None
        layer_norm: Annotated[bool, "layer normalisation in the critics' hidden layers"] = True
        backup_actions: Annotated[int, "next actions of which the best counts in the critics' target"] = 1
        conservatism: Annotated[float, "weight of the penalty (alpha)"] = 1.0
        inverse_temperature: Annotated[float, "centre of the range of the actor's weights of Q"] = 1.0
        spread: Annotated[float, "half the width of that range"] = 0.5
        block_steps: Annotated[int, "environment steps between blocks of updates"] = 1_000

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    beta: Tensor

    def build(self) -> None:
        """CQL's networks, with a universal policy; a balance policy like CQL's."""
        super().build()
        self.build_balance(affine_log_std=self.config.affine_log_std, output_gain=self.config.output_gain)

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The universal policy; `options` are its own."""
        return super().build_actor(context_dim=ENCODING_DIM, **options)

    def update(self, batch: Transitions) -> Metrics:
        """CQL's at betas drawn once, which penalty and actor share; then the balance policy."""
        self.beta = self.training_beta(batch)
        return super().update(batch) | self.update_balance(batch)

    def update_balance(self, batch: Transitions) -> Metrics:
        """One step of the balance policy."""
        return {"balance_loss": self.balance_optimizer.step(self.balance_loss(batch))}

    def balance_loss(self, batch: Transitions) -> Tensor:
        """-E[min Q(s, a)], a of the universal policy at a beta of the balance policy; there is no entropy term."""
        beta = self.scale(self.balance(batch.observations).sample(self.noise))
        actions = self.actor(batch.observations, encode(beta)).sample(self.noise)
        return -(batch.weights * self.critic(batch.observations, actions).amin(0)).mean()

    def actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi(a|s, e(beta)) - beta * min Q(s, a)]; and the detached log pi [B]."""
        actions, log_prob = self.training_policy(batch).sample_with_log_prob(self.noise)
        q = self.critic(batch.observations, actions).amin(0)
        loss = (batch.weights * (self.temperature().detach() * log_prob - self.beta * q)).mean()
        return loss, log_prob.detach()

    def training_policy(self, batch: Transitions) -> TanhGaussian:
        """The universal policy at this update's betas."""
        return self.actor(batch.observations, encode(self.beta))

    def policy(self, observations: Tensor) -> TanhGaussian:
        """The universal policy at the balance policy's most probable beta."""
        return self.actor(observations, encode(self.scale(self.balance(observations).mode)))

    def cadence(self, budget: Budget) -> Cadence:
        """Blocks, which owe the budget's updates for each of their steps."""
        return budget.blocks(self.config.block_steps)
