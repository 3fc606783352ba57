"""BOORL: Bayesian offline-to-online RL (Hu et al., 2024), https://arxiv.org/abs/2405.20984, on TD3+BC.

A bootstrapped ensemble of agents stands for the posterior over policies; online, one of their actions is drawn.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng, mean
from o2o_diffusion.learners.base import required
from o2o_diffusion.learners.ensembles import drawn, pair_minima, pick, twice
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.networks.actors import Deterministic, DeterministicActor
from o2o_diffusion.optimization import polyak_update
from o2o_diffusion.types import Metrics, Source, Transitions

GOLDEN, RANGE = 0x9E3779B1, 2**31


class Posterior(nn.Module):
    """The agent that acts in this episode."""

    agent: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("agent", torch.zeros((), dtype=torch.int64))


class BOORL(TD3BC):
    """Agents of one actor and two critics each, TD3+BC offline on bootstrapped rows, TD3 online.

    Each agent leaves out a tenth of the offline rows, offline only. Exploring online, an agent's action is drawn with
    probabilities softmax(min Q of its critics), at every step as in the authors' code, or an agent at random for each
    episode, as in posterior sampling. Evaluation takes the mean of the actions. Online, critics and their targets take
    `critic_steps` updates per actor step. The authors add the rows of the warm-up to the offline pool; here they
    are online rows. All agents see the same batches.
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Defaults are the authors' for locomotion."""

        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = False
        ensemble_size: Annotated[int, "number of critics, two per agent", Ge(2)] = 10
        kept: Annotated[float, "probability that an agent sees an offline row", Gt(0), Le(1)] = 0.9
        critic_steps: Annotated[int, "critic steps per actor step, online", Ge(1)] = 5
        redraw: Annotated[Literal["step", "episode"], "draw by value at each step, or an agent per episode"] = "step"

        def __post_init__(self):
            if self.ensemble_size % 2:
                raise ValueError(f"'ensemble_size' is {self.ensemble_size}, expected two critics per agent")

    config: Config

    def build(self) -> None:
        """Create the agents, actors and critics in one network each."""
        super().build()
        self.posterior = Posterior().to(self.device)

    @property
    def num_agents(self) -> int:
        """Number of agents, N."""
        return self.config.ensemble_size // 2

    def build_actor(self) -> DeterministicActor:
        """The policies of all agents."""
        dims = self.spec.observation_dim, self.spec.action_dim
        return DeterministicActor(*dims, self.config.hidden, ensemble_size=self.num_agents)

    def target_actions(self, observations: Tensor) -> Tensor:
        """[N, B, A], each agent's target policy actions with clipped noise."""
        c = self.config
        noise = c.target_noise * self.rng.normal(*observations.shape[:-1], self.num_agents, self.spec.action_dim)
        noise = noise.clamp(-c.noise_clip, c.noise_clip).movedim(-2, -3)
        return (self.target_actor(observations) + noise).clamp(-1, 1)

    @torch.no_grad()
    def target_q(self, batch: Transitions) -> Tensor:
        """[N, B], r + discount * min Q'(s', a') of each agent's own critics at its own action."""
        next_actions = self.target_actions(batch.next_observations)
        next_v = pair_minima(self.target_critic.own(batch.next_observations, twice(next_actions, -3)))
        return batch.rewards.unsqueeze(-2) + batch.discounts.unsqueeze(-2) * next_v

    def bootstrap(self, batch: Transitions) -> Tensor:
        """[N, B], 1 / kept for the offline rows that an agent sees, chosen by a hash of row and agent, else 0."""
        agents = torch.arange(1, self.num_agents + 1, device=batch.rows.device)[:, None]
        number = hashed(hashed(batch.rows.unsqueeze(-2)) + agents)
        seen = (number.double() / RANGE < self.config.kept).float() / self.config.kept
        is_offline = (batch.sources == int(Source.OFFLINE)).unsqueeze(-2)
        return torch.where(is_offline & (not self.phase.is_online), seen, 1.0)

    def critic_loss(self, batch: Transitions) -> Tensor:
        """TD3's loss of each agent on its rows, summed over agents."""
        target_q = self.target_q(batch)
        q = self.critic(batch.observations, batch.actions)  # [..., 2N, B]
        weights = batch.weights.unsqueeze(-2) * twice(self.bootstrap(batch), -2)
        return (weights * (q - twice(target_q, -2)).square()).sum(-2).mean(-1)

    def actor_loss(self, batch: Transitions) -> Tensor:
        """TD3+BC's loss of each agent on its rows, without cloning online, summed over agents."""
        actions = self.actor(batch.observations)  # [..., N, B, A]
        q = self.critic.own(batch.observations, twice(actions, -3))[..., ::2, :]
        improvement = self.actor_weights(batch).unsqueeze(-2) * q
        if self.phase.is_online:
            return -improvement.sum(-2).mean(-1)
        distance = (actions - batch.actions.unsqueeze(-3)).square().mean(-1)
        cloning = self.bc * (self.cloning_weights(batch) * batch.regularization).unsqueeze(-2) * distance
        scale = self.config.alpha / mean(q.abs())  # [..., N]
        return (self.bootstrap(batch) * (cloning - scale[..., None] * improvement)).sum(-2).mean(-1)

    def update(self, batch: Transitions) -> Metrics:
        """Run TD3+BC's update offline; online, move the critics' targets at every update and the actors less often."""
        if not self.phase.is_online:
            return super().update(batch)
        self.num_updates += 1
        metrics = {"critic_loss": self.critic_optimizer.step(self.critic_loss(batch))}
        polyak_update(self.target_critic, self.critic, self.config.tau)
        if self.num_updates % self.config.critic_steps == 0:
            metrics["actor_loss"] = self.actor_optimizer.step(self.actor_loss(batch))
            polyak_update(self.target_actor, self.actor, self.config.tau)
        return metrics

    def begin_episode(self) -> None:
        """Draw the agent of the next episode."""
        self.posterior.agent.copy_(self.rng.members(1, self.num_agents)[0])

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], mean over agents of the minimum over an agent's critics."""
        return pair_minima(self.critic(observations, actions)).mean(-2)

    def policy(self, observations: Tensor) -> Deterministic:
        """The mean of the agents' actions, with the standard deviation of the exploration noise."""
        return Deterministic(self.actor(observations).mean(-3), self.exploration)

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """[B, observation_dim] -> [B, action_dim]: the mean action; exploring online, an agent's action plus noise."""
        if deterministic or not self.phase.is_online:
            return super().act(observations, deterministic=deterministic, rng=rng)
        proposals, rng = self.actor(observations), required(rng)  # [N, B, A]
        logits = pair_minima(self.critic.own(observations, twice(proposals, -3))).movedim(-2, -1)  # [B, N]
        proposals, draws = proposals.movedim(-3, -2), rng.uniform(len(observations))
        if self.config.redraw == "step":
            actions = drawn(proposals, logits, draws)
        else:
            actions = pick(proposals, self.posterior.agent.expand(len(observations)))
        noise = self.config.exploration_noise * rng.normal(*actions.shape)
        return (actions + noise).clamp(-1, 1)


def hashed(numbers: Tensor) -> Tensor:
    """int64 -> int64 in [0, 2^31), as if uniform: two rounds of multiplication and shift."""
    for _ in range(2):
        numbers = (numbers * GOLDEN) % 2**32
        numbers = numbers ^ (numbers >> 15)
    return numbers % RANGE
