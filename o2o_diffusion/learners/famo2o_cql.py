"""FamO2O on CQL: a policy family with per-state selection (Wang et al., 2023), https://arxiv.org/abs/2310.17966."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.famo2o import ENCODING_DIM, Family, encode
from o2o_diffusion.networks.actors import TanhGaussian, TanhGaussianActor
from o2o_diffusion.schedule import Budget, Cadence
from o2o_diffusion.types import Metrics, Transitions


class FamO2OCQL(Family, CQL):
    """CQL with a universal policy pi(a | s, e(beta)) and a balance policy pi(beta | s), both trained in both phases.

    Beta weights Q against entropy. Acting and the critics' actions at s' use the balance policy's mode at each state;
    the penalty's actions at s use the actor's training betas.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Beta lies in `inverse_temperature` +- `spread`: [0.5, 1.5]. Unlike CQL's, critics use layer normalization."""

        actor_learning_rate: Annotated[
            float | None, "learning rate of actor and temperature; null: learning_rate", Gt(0)
        ] = None
        layer_norm: Annotated[bool, "layer normalization in the critics' hidden layers"] = True
        backup_actions: Annotated[int, "number of next actions in the max-Q backup", Ge(1)] = 1
        conservatism: Annotated[float, "penalty weight (alpha)", Ge(0)] = 1.0
        inverse_temperature: Annotated[float, "center of the range of beta, the actor's weight of Q", Ge(0)] = 1.0
        spread: Annotated[float, "half-width of that range", Ge(0)] = 0.5
        block_steps: Annotated[int, "environment steps between blocks of updates", Ge(0)] = 1_000

    config: Config
    beta: Tensor

    def build(self) -> None:
        """Create CQL's networks with a universal policy, and a balance policy with CQL's actor settings."""
        super().build()
        self.build_balance(affine_log_std=self.config.affine_log_std, output_gain=self.config.output_gain)

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The universal policy; `options` are passed to its constructor."""
        return super().build_actor(context_dim=ENCODING_DIM, **options)

    def update(self, batch: Transitions) -> Metrics:
        """Run CQL's update at betas drawn once for penalty and actor, then update the balance policy."""
        self.beta = self.training_beta(batch)
        return super().update(batch) | self.update_balance(batch)

    def update_balance(self, batch: Transitions) -> Metrics:
        """Take one step of the balance policy."""
        return {"balance_loss": self.balance_optimizer.step(self.balance_loss(batch))}

    def balance_loss(self, batch: Transitions) -> Tensor:
        """-E[min Q(s, a)], beta ~ balance policy, a ~ universal policy at beta; no entropy term."""
        beta = self.scale(self.balance(batch.observations).sample(self.rng))
        actions = self.actor(batch.observations, encode(beta)).sample(self.rng)
        return -(self.actor_weights(batch) * self.critic(batch.observations, actions).amin(-2)).mean(-1)

    def actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """E[temperature * log pi(a|s, e(beta)) - beta * min Q(s, a)], and the detached log pi [B]."""
        actions, log_prob = self.training_policy(batch).sample_with_log_prob(self.rng)
        q = self.critic(batch.observations, actions).amin(-2)
        loss = (self.actor_weights(batch) * (self.temperature().detach()[..., None] * log_prob - self.beta * q)).mean(
            -1
        )
        return loss, log_prob.detach()

    def training_policy(self, batch: Transitions) -> TanhGaussian:
        """The universal policy at this update's betas."""
        return self.actor(batch.observations, encode(self.beta))

    def policy(self, observations: Tensor) -> TanhGaussian:
        """The universal policy at the balance policy's mode."""
        return self.actor(observations, encode(self.scale(self.balance(observations).mode)))

    def cadence(self, budget: Budget) -> Cadence:
        """Run updates in blocks, every `block_steps` environment steps."""
        return budget.cadence(self.config.block_steps)
