"""ENOTO: ensembles for offline-to-online RL (Zhao et al., 2024), https://arxiv.org/abs/2306.06871, on CQL."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng, mean
from o2o_diffusion.learners.base import required
from o2o_diffusion.learners.cql import CQL
from o2o_diffusion.learners.ensembles import best, weighted_min_pair
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase, Shares
from o2o_diffusion.types import Transitions


class ENOTO(CQL):
    """CQL with ten critics offline; online SAC on new rows only, with a milder target and exploration by the ensemble.

    Online, the target is the mean over all pairs of critics of the pair's minimum, the critic loss is weighted by the
    members' agreement, and the explored action is the one of `candidates` policy actions with the highest mean Q plus
    `optimism` times the standard deviation. The authors' temperature rate of 1e-4 offline is the actor's here, and
    their rates online are not known to us: `learning_rate` for all networks. Their variant for AntMaze is left out.
    """

    @dataclass(frozen=True)
    class Config(CQL.Config):
        """Defaults are the authors'."""

        hidden: Annotated[tuple[int, ...], "hidden layer widths of every network", Ge(1)] = (256, 256, 256)
        ensemble_size: Annotated[int, "number of critics", Ge(2)] = 10
        subset_size: Annotated[int, "target critics in the minimum, resampled at each use", Ge(1)] = 10
        actor_learning_rate: Annotated[
            float | None, "learning rate of actor and temperature, offline; null: learning_rate", Gt(0)
        ] = 3e-5
        online_conservatism: Annotated[float | None, "penalty weight online; null: same as offline", Ge(0)] = 0.0
        backup_actions: Annotated[int, "number of next actions in the max-Q backup", Ge(1)] = 1
        entropy_backup: Annotated[bool, "include the next action's entropy in the critics' target"] = True
        candidates: Annotated[int, "policy actions to choose from when exploring", Ge(1)] = 10
        optimism: Annotated[float, "weight of the ensemble's standard deviation in that choice (lambda)", Ge(0)] = 10.0
        agreement: Annotated[float, "sharpness of the loss weight in the members' disagreement", Ge(0)] = 10.0

    config: Config

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; online with one learning rate."""
        super().begin_phase(phase, replay)
        if phase.is_online:
            for optimizer in (self.actor_optimizer, self.temperature_optimizer):
                optimizer.learning_rate = self.config.learning_rate

    def critic_loss(self, batch: Transitions) -> Tensor:
        """SAC's loss on the weighted-min-pair target, times a weight in (1/2, 1) of the members' agreement."""
        if not self.phase.is_online:
            return super().critic_loss(batch)
        with torch.no_grad():
            next_q, log_prob = self.next_q(batch, None)  # [..., E, B, N], [..., B, N]
            target_q = self.backup(batch, weighted_min_pair(next_q, -3), log_prob)
            weight = self.agreement(next_q)
        q = self.critic(batch.observations, batch.actions)  # [..., E, B]
        return weight * (batch.weights * (q - target_q.unsqueeze(-2)).square().sum(-2)).mean(-1)

    def agreement(self, next_q: Tensor) -> Tensor:
        """[..., E, B, N] -> [], sigmoid(-agreement * std over members of the mean target value) + 1/2."""
        spread = mean(next_q.mean(-1)).std(-1)
        return (-self.config.agreement * spread).sigmoid() + 0.5

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """[B, observation_dim] -> [B, action_dim]: the policy's mode; exploring online, the best of the candidates."""
        if deterministic or not self.phase.is_online:
            return super().act(observations, deterministic=deterministic, rng=rng)
        actions = self.policy(observations).repeat(self.config.candidates).sample(required(rng)).clamp(-1, 1)
        q = self.critic(observations, actions)  # [E, B, N]
        return best(actions, q.mean(-3) + self.config.optimism * q.std(-3))

    def online_shares(self) -> Shares:
        """Online rows only."""
        return Shares(online=1.0)
