"""Off2OnRL: a pessimistic ensemble, balanced replay (Lee et al., 2021), https://arxiv.org/abs/2107.00591, on CQL."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.ensembles import pair_minima, twice
from o2o_diffusion.networks.actors import Gaussian, TanhGaussian, TanhGaussianActor
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.types import Transitions

LOG_STD_RANGE = -20.0, 2.0


class Off2OnRL(CQL):
    """Agents of one actor and two critics each, trained by CQL offline; online, SAC on their ensemble.

    The ensemble's policy is the tanh of a Gaussian with the mean and the variance of the agents' mixture. Each agent's
    critics have a target of their own minimum; online, all share the next action of the ensemble's policy, and the
    actors maximize the mean of these minima. The authors train the agents in separate runs and load them; here they
    share batches and the temperature, which starts at 1 again online, as do Adam's moments. The authors compute all
    losses before any step.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults are the authors'."""

        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        ensemble_size: Annotated[int, "number of critics, two per agent", Ge(2)] = 10
        actor_learning_rate: Annotated[
            float | None, "learning rate of actor and temperature; null: learning_rate", Gt(0)
        ] = None
        online_conservatism: Annotated[float | None, "penalty weight online; null: same as offline", Ge(0)] = 0.0
        backup_actions: Annotated[int, "number of next actions in the max-Q backup", Ge(1)] = 1
        affine_log_std: Annotated[bool, "log sigma = m * output + b with learned m and b, initially 1 and -1"] = False

        def __post_init__(self):
            if self.ensemble_size % 2:
                raise ValueError(f"'ensemble_size' is {self.ensemble_size}, expected two critics per agent")

    config: Config

    def build_actor(self, **options: Any) -> TanhGaussianActor:
        """The policies of all agents; `options` are passed to the network's constructor."""
        return super().build_actor(ensemble_size=self.config.ensemble_size // 2, **options)

    def agents(self, observations: Tensor) -> TanhGaussian:
        """The policies of the N agents, with samples [B, N, A]."""
        base = self.actor(observations).base  # [..., N, B, A]
        return TanhGaussian(Gaussian(base.mean.movedim(-3, -2), base.log_std.movedim(-3, -2)))

    def policy(self, observations: Tensor) -> TanhGaussian:
        """The ensemble's policy, with the moments of the agents' mixture before the tanh."""
        base = self.agents(observations).base
        mean = base.mean.mean(-2)
        variance = (base.mean.square() + (2 * base.log_std).exp()).mean(-2) - mean.square()
        return TanhGaussian(Gaussian(mean, (0.5 * variance.clamp(min=1e-12).log()).clamp(*LOG_STD_RANGE)))

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; the first online one resets the temperature and Adam's moments."""
        if phase.is_online and not self.phase.is_online:
            self.temperature.log.data.zero_()
            for optimizer in (self.actor_optimizer, self.critic_optimizer, self.temperature_optimizer):
                optimizer.reset()
        super().begin_phase(phase, replay)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[2N, B], r + discount * min Q' of each agent's critics: at its own action offline, else at the ensemble's."""
        if self.phase.is_online:
            actions, log_prob = self.policy(batch.next_observations).sample_with_log_prob(self.rng)
            next_v = pair_minima(self.target_critic(batch.next_observations, actions))
            next_v = next_v - (self.temperature()[..., None] * log_prob).unsqueeze(-2)
        else:
            actions = self.agents(batch.next_observations).sample(self.rng).movedim(-2, -3)  # [..., N, B, A]
            next_v = pair_minima(self.target_critic.own(batch.next_observations, twice(actions, -3)))
        return twice(batch.rewards.unsqueeze(-2) + batch.discounts.unsqueeze(-2) * next_v, -2)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """SAC's loss, every critic on its agent's target, summed over the ensemble."""
        q = self.critic(batch.observations, batch.actions)  # [..., 2N, B]
        return (batch.weights * (q - self.target_q(batch)).square().sum(-2)).mean(-1)

    @torch.no_grad()
    def proposals(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Actions [N, B, 3M, A], uniform, the agent's at s and at s', and their log-densities [N, B, 3M]."""
        shape = *batch.rewards.shape, self.config.ensemble_size // 2, self.config.penalty_actions
        uniform = 2 * self.rng.uniform(*shape, self.spec.action_dim) - 1
        draws = [(uniform, torch.full_like(uniform[..., 0], -self.spec.action_dim * math.log(2)))]
        for observations in (batch.observations, batch.next_observations):
            draws.append(self.agents(observations).repeat(self.config.penalty_actions).sample_with_log_prob(self.rng))
        actions, log_densities = zip(*draws, strict=True)
        return torch.cat(actions, dim=-2).movedim(-3, -4), torch.cat(log_densities, dim=-1).movedim(-2, -3)

    def conservative_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """SAC's loss plus weight * E[D], D over an agent's own proposals, and the detached E[D]."""
        actions, log_density = self.proposals(batch)
        q = self.critic.own(batch.observations, twice(actions, -4))  # [..., 2N, B, 3M]
        difference = (q - twice(log_density, -3)).logsumexp(-1) - self.critic(batch.observations, batch.actions)
        penalty = ((batch.weights * batch.regularization).unsqueeze(-2) * difference).mean((-2, -1))
        return self.critic_loss(batch) + q.shape[-3] * self.penalty_weight() * penalty, penalty.detach()

    def actor_loss(self, batch: Transitions) -> tuple[Tensor, Tensor]:
        """SAC's loss of every agent offline; online, of the ensemble's policy on the mean of the agents' minima."""
        weights, temperature = self.actor_weights(batch), self.temperature().detach()[..., None]
        if self.phase.is_online:
            actions, log_prob = self.policy(batch.observations).sample_with_log_prob(self.rng)
            q = self.values(batch.observations, actions)
            return (weights * (temperature * log_prob - q)).mean(-1), log_prob.detach()
        actions, log_prob = self.agents(batch.observations).sample_with_log_prob(self.rng)  # [..., B, N, A]
        q = pair_minima(self.critic.own(batch.observations, twice(actions.movedim(-2, -3), -3)))
        loss = (weights * (temperature * log_prob.sum(-1) - q.sum(-2))).mean(-1)
        return loss, log_prob.mean(-1).detach()

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], mean over agents of the minimum over an agent's critics."""
        return pair_minima(self.critic(observations, actions)).mean(-2)
