"""OOO: offline-to-online-to-offline RL (Mark et al., 2023), https://arxiv.org/abs/2310.08558, around any learner.

A learner with a novelty bonus collects; after the last environment step a fresh one is trained on all rows, offline
and online, as in pretraining and without the bonus, and is the result.
"""

from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng, mean, seeded
from o2o_diffusion.networks.novelty import Novelty
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.protocols import Learner
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase, Shares
from o2o_diffusion.settings import component
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Episode, Metrics, Transitions, TransitionSpec


class OOO(Stateful):
    """Trains the learner `base`, whose rewards include a bonus for novel next observations online, and then another.

    Stored rewards stay as they are. The last phases are the base's offline ones, on half offline, half online rows. Of
    the authors' code, up-sampling of successes and clipping of Q to the data's bounds are left out; the bonus network's
    step follows the base's update. What the base's file asks of the run is not applied: give it with the run.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are the authors' for IQL on sparse tasks."""

        base: Annotated[str, "learner that explores and is retrained, by the name of its file"] = "iql"
        settings: Annotated[dict[str, Any], "settings of that learner, e.g. {expectile: 0.9}"] = field(
            default_factory=dict
        )
        retrain_updates: Annotated[int, "updates of the fresh learner after the last step", Ge(1)] = 2_000_000
        bonus: Annotated[float, "weight of the novelty bonus in the rewards", Ge(0)] = 10.0
        novelty_hidden: Annotated[tuple[int, ...], "layer widths of the bonus networks, features last", Ge(1)] = (
            512,
            512,
        )
        novelty_rate: Annotated[float, "Adam learning rate of the bonus network", Gt(0)] = 1e-4
        novelty_share: Annotated[float, "share of rows that train it", Interval(gt=0, le=1)] = 0.25

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.rng = config, ShardedRng(seed + 2_000_003, device)
        self.base: Learner = component("learner", config.base, config.settings).build(spec, seed=seed, device=device)
        with seeded(seed):
            self.novelty = Novelty(spec.observation_dim, config.novelty_hidden).to(device)
        self.novelty_optimizer = Optimizer(self.novelty.predictor.parameters(), config.novelty_rate)
        self.explores = False

    state_fields = ("explores",)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The base's phases, then its offline phases again with a fresh learner on all rows."""
        exploring = self.base.phases(budget)
        again = self.base.phases(replace(budget, pretrain_updates=self.config.retrain_updates))
        offline = tuple(takewhile(lambda phase: not phase.is_online, again))
        size = exploring[-1].batch_size
        last = offline or (Phase("retrain", self.config.retrain_updates, batch_size=size),)
        last = tuple(replace(phase, shares=Shares(offline=0.5, online=0.5)) for phase in last)
        return (*exploring, replace(last[0], fresh=True), *last[1:]) if exploring[-1].is_online else exploring

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; only online ones have the bonus."""
        self.explores = phase.is_online
        self.base.begin_phase(phase, replay)

    def update(self, batch: Transitions) -> Metrics:
        """Run the base's update; online with the bonus, then one step of its network."""
        if not self.explores:
            return self.base.update(batch)
        bonus = self.novelty.bonus(batch.next_observations)
        metrics = self.base.update(batch.where(rewards=batch.rewards + self.config.bonus * bonus))
        loss = self.novelty_optimizer.step(self.novelty_loss(batch))
        return metrics | {"novelty_loss": loss, "bonus": mean(bonus)}

    def novelty_loss(self, batch: Transitions) -> Tensor:
        """Mean error at a random share of the next observations."""
        chosen = (self.rng.uniform(*batch.rewards.shape) < self.config.novelty_share).float()
        return (chosen * self.novelty.error(batch.next_observations)).mean(-1) / self.config.novelty_share

    def begin_episode(self) -> None:
        """Notify the base."""
        self.base.begin_episode()

    def end_episode(self, episode: Episode) -> None:
        """Notify the base."""
        self.base.end_episode(episode)

    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """[B, observation_dim] -> [B, action_dim], the base's actions."""
        return self.base.act(observations, deterministic=deterministic, rng=rng)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the base's values, which include the bonus while it explores."""
        return self.base.values(observations, actions)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the base's log-densities."""
        return self.base.log_prob(observations, actions)
