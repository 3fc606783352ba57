"""BAQ: behavior-adaptive Q-learning (Zu et al., 2025), https://arxiv.org/abs/2511.03695, re-derived on TD3+BC."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from o2o_diffusion.learners.behavior import BehaviorFirst
from o2o_diffusion.learners.schedules import Scheduled, linear
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.networks.actors import DeterministicActor
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.types import Transitions


class BehaviorDistance(nn.Module):
    """A clone b(s) of the data's behavior, and distances to it in units of their median over the data."""

    median: Tensor

    def __init__(self, actor: DeterministicActor):
        super().__init__()
        self.actor = actor
        self.register_buffer("median", torch.ones(()))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], |a - b(s)|^2 / A."""
        return (actions - self.actor(observations)).square().mean(-1)

    @torch.no_grad()
    def measure(self, observations: Tensor, actions: Tensor) -> None:
        """Store the median distance of `actions`, floored to keep divisions by it finite."""
        self.median.copy_(self(observations, actions).median().clamp(min=1e-6))


class BAQ(BehaviorFirst, Scheduled, TD3BC):
    """TD3+BC offline; online, backups through actions unlike the behavior count little at first.

    The weight of a row in the critics' loss is (1 - kappa) exp(-d / h) + kappa, d the distance of the policy's next
    action to the behavior's and h the median distance in the data; kappa grows from 0 to 1 over `adapt_steps`. The
    actor is held to the behavior by (1 - kappa) bc. Only the abstract of the paper was at hand: all formulas and
    values are this package's. Rows are drawn by their distance to the behavior (`samplers/divergence.py`).
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Chosen values."""

        behavior_updates: Annotated[int, "updates of the behavior clone, before pretraining", Ge(0)] = 100_000
        adapt_steps: Annotated[float, "online steps after which the behavior no longer matters", Gt(0)] = 100_000

    config: Config
    behavior: BehaviorDistance
    state_fields = (*TD3BC.state_fields, *Scheduled.state_fields)

    def build(self) -> None:
        """Create TD3+BC's networks and the behavior clone."""
        super().build()
        clone = DeterministicActor(self.spec.observation_dim, self.spec.action_dim, self.config.hidden)
        self.behavior = BehaviorDistance(clone).to(self.device)
        self.behavior_optimizer = Optimizer(self.behavior.parameters(), self.config.learning_rate)

    def behavior_loss(self, batch: Transitions) -> Tensor:
        """E[|a - b(s)|^2 / A]."""
        return (self.cloning_weights(batch) * self.behavior(batch.observations, batch.actions)).mean(-1)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; the first online one measures the behavior's median distance."""
        if phase.is_online and not self.phase.is_online and len(replay.offline):
            rows = replay.offline.all()
            self.behavior.measure(rows.observations, rows.actions)
        super().begin_phase(phase, replay)

    @property
    def kappa(self) -> float:
        """Confidence in actions unlike the behavior: 1 offline, where TD3+BC is unchanged."""
        return linear(0.0, 1.0, self.online_steps / self.config.adapt_steps) if self.phase.is_online else 1.0

    @torch.no_grad()
    def confidence(self, batch: Transitions) -> Tensor:
        """[B], weights of the backups: (1 - kappa) exp(-d(s', pi(s')) / median) + kappa."""
        distance = self.behavior(batch.next_observations, self.actor(batch.next_observations))
        return (1 - self.kappa) * (-distance / self.behavior.median[..., None]).exp() + self.kappa

    def critic_loss(self, batch: Transitions) -> Tensor:
        """TD3's loss with rows weighted by `confidence`."""
        return super().critic_loss(batch.where(weights=batch.weights * self.confidence(batch)))

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], TD3+BC's cloning offline; online, (1 - kappa) bc |pi(s) - b(s)|^2 / A."""
        if not self.phase.is_online:
            return super().regularizer(batch, actions)
        held = self.actor_weights(batch) * batch.regularization
        return (1 - self.kappa) * self.config.bc * held * self.behavior(batch.observations, actions)
