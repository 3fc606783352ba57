"""SPOT: supported policy optimization (Wu et al., 2022), https://arxiv.org/abs/2202.06239, on TD3."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Tensor

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.behavior import BehaviorFirst
from o2o_diffusion.learners.schedules import Scheduled
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.networks.vae import ActionVAE
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.types import Transitions


class SPOT(BehaviorFirst, Scheduled, TD3BC):
    """TD3 whose actor stays where a VAE of the data's actions has a low loss, its bound on the negative log-density.

    The weight of the VAE's loss cools linearly online. The authors' actor has dropout on locomotion data, a smaller
    learning rate on AntMaze (1e-4), and the discount 0.995 on its large mazes; here there is no dropout.
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Defaults are the authors'; they tune `bc`: AntMaze 0.025 ... 0.25, locomotion 0.05 ... 1, Adroit 1."""

        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        alpha: Annotated[float, "weight of Q, normalized by mean |Q|, relative to the VAE's loss", Ge(0)] = 1.0
        bc: Annotated[float, "weight of the VAE's loss at the policy's actions (lambda)", Ge(0)] = 0.25
        min_decay: Annotated[float, "final fraction of `bc` online", Interval(ge=0, le=1)] = 0.2
        decay_steps: Annotated[float, "online steps in which `bc` would reach 0", Gt(0)] = 1e6
        behavior_updates: Annotated[int, "updates of the VAE, before pretraining", Ge(0)] = 100_000
        behavior_hidden: Annotated[tuple[int, ...], "hidden layer widths of the VAE", Ge(1)] = (750, 750)
        behavior_rate: Annotated[float, "Adam learning rate of the VAE", Gt(0)] = 1e-3
        beta: Annotated[float, "weight of the divergence in the VAE's loss", Ge(0)] = 0.5

    config: Config
    behavior: ActionVAE
    state_fields = (*TD3BC.state_fields, *Scheduled.state_fields)

    def build(self) -> None:
        """Create TD3's networks and the VAE."""
        super().build()
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        self.behavior = ActionVAE(*dims, c.behavior_hidden, beta=c.beta).to(self.device)
        self.behavior_optimizer = Optimizer(self.behavior.parameters(), c.behavior_rate)

    def behavior_loss(self, batch: Transitions) -> Tensor:
        """The VAE's loss on the data's actions."""
        return (batch.weights * self.behavior.loss(batch.observations, batch.actions, self.rng)).mean(-1)

    @property
    def bc(self) -> float:
        """The current weight of the VAE's loss."""
        return self.config.bc * max(self.config.min_decay, 1 - self.online_steps / self.config.decay_steps)

    def q_scale(self, q: Tensor) -> Tensor:
        """lambda = alpha / mean |Q|."""
        return self.config.alpha / mean(q.abs())

    def regularizer(self, batch: Transitions, actions: Tensor) -> Tensor:
        """[B], bc * the VAE's loss at `actions` = pi(s)."""
        support = self.behavior.loss(batch.observations, actions, self.rng)
        return self.bc * self.actor_weights(batch) * batch.regularization * support
