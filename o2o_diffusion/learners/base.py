"""Base class of the learners: seeded networks, acting and the default phases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng, seeded
from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.weights import reweighted
from o2o_diffusion.networks.actors import Gaussian, TanhGaussian
from o2o_diffusion.networks.critics import Critic
from o2o_diffusion.networks.flow import OneStep
from o2o_diffusion.networks.normalizer import Normalizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Cadence, Phase, Shares
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Episode, Metrics, Transitions, TransitionSpec


class BaseLearner(Stateful, ABC):
    """A learner with a policy and a critic ensemble; subclasses add networks, losses and `update`.

    `phase` is the current phase. `rng` draws the random numbers of updates, with the same seed on every process.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings common to all learners."""

        batch_size: Annotated[int, "transitions per update, over all processes", Ge(1)] = 256
        learning_rate: Annotated[float, "Adam learning rate of every network", Gt(0)] = 3e-4
        hidden: Annotated[tuple[int, ...], "hidden layer widths of every network", Ge(1)] = (256, 256)
        tau: Annotated[float, "Polyak averaging coefficient of the target networks", Interval(gt=0, le=1)] = 0.005
        normalize_observations: Annotated[bool, "standardize observations with the offline statistics"] = True
        critic_hidden: Annotated[
            tuple[int, ...] | None, "hidden layer widths of the critics; null: same as hidden", Ge(1)
        ] = None
        layer_norm: Annotated[bool, "layer normalization in the critics' hidden layers"] = False
        ensemble_size: Annotated[int, "number of critics", Ge(1)] = 2
        subset_size: Annotated[int, "target critics in the minimum, resampled at each use", Ge(1)] = 2
        subset_replacement: Annotated[bool, "sample target critics with replacement (WSRL)"] = False
        clone_generated: Annotated[bool, "clone the actions of generated rows too, where the actor clones any"] = False
        actor_generated_share: Annotated[
            float, "weight of a generated row where the actor maximizes Q, relative to a real one", Interval(ge=0, le=1)
        ] = 1.0

    config: Any
    critic: Critic
    target_critic: Critic
    state_fields = ("phase", "is_normalized")

    def __init__(self, config: Any, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec, self.device = config, spec, torch.device(device)
        self.phase, self.is_normalized = Phase("none"), False
        with seeded(seed):
            self.build()
        self.rng = ShardedRng(seed + 1_000_003, device)  # a different stream from the weights

    @abstractmethod
    def build(self) -> None:
        """Create networks, targets (equal at first) and optimizers on `self.device`."""

    def build_critic(self, **options: Any) -> Critic:
        """The critic ensemble; `options` are passed to its constructor."""
        c, dims = self.config, (self.spec.observation_dim, self.spec.action_dim)
        hidden = c.critic_hidden or c.hidden
        return Critic(*dims, hidden, ensemble_size=c.ensemble_size, layer_norm=c.layer_norm, **options)

    @abstractmethod
    def update(self, batch: Transitions) -> Metrics:
        """Run one update on this process's rows."""

    @abstractmethod
    def policy(self, observations: Tensor) -> Gaussian | TanhGaussian | OneStep:
        """The action distribution at `observations` [..., B, observation_dim]."""

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        """[B, observation_dim] -> [B, action_dim] in [-1, 1]: the policy's mode, or a sample drawn from `rng`.

        Raises TypeError without `rng` unless `deterministic`.
        """
        policy = self.policy(observations)
        return (policy.mode if deterministic else policy.sample(required(rng))).clamp(-1, 1)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], minimum over the critic ensemble."""
        return self.critic(observations, actions).amin(-2)

    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], minimum over `subset_size` target critics."""
        return self.target_critic(observations, actions, self.draw_members(self.config.subset_size)).amin(-2)

    def draw_members(self, size: int | None) -> Tensor | None:
        """[..., size] indices of random critics, the same on every process; None means all critics."""
        c = self.config
        if size is None or (size >= c.ensemble_size and not c.subset_replacement):
            return None
        return self.rng.members(size, c.ensemble_size, replacement=c.subset_replacement)

    def cloning_weights(self, batch: Transitions) -> Tensor:
        """[B], weights in a term that clones actions: real rows only, unless `clone_generated`."""
        return reweighted(batch, float(self.config.clone_generated))

    def actor_weights(self, batch: Transitions) -> Tensor:
        """[B], weights in a term that maximizes Q over actions."""
        return reweighted(batch, self.config.actor_generated_share)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B] log-density of `actions` under the policy."""
        return self.policy(observations).log_prob(actions)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """Pretrain on offline rows, warm up with a frozen policy, fine-tune; empty phases are omitted.

        Subclasses override the hooks below. Raises InputError if the warm-up leaves no steps for fine-tuning.
        """
        warmup = max(budget.warmup_steps, self.min_warmup_steps)
        if 0 < budget.online_steps <= warmup:
            raise InputError(
                f"{type(self).__name__} warms up for {warmup:,} environment steps, which leaves none of"
                f" online_steps={budget.online_steps} to learn in"
            )
        random_steps, size = min(self.random_steps, budget.online_steps), self.config.batch_size
        phases = (
            Phase("pretrain", budget.pretrain_updates, shares=self.offline_shares(), batch_size=size),
            Phase("random", env_steps=random_steps, learns=False, random_actions=True),
            Phase("warmup", env_steps=min(warmup, budget.online_steps) - random_steps, learns=False),
            Phase(
                "finetune",
                env_steps=max(budget.online_steps - warmup, 0),
                cadence=self.cadence(budget),
                shares=self.online_shares(),
                batch_size=size * self.batches_per_update,
            ),
        )
        return tuple(phase for phase in phases if phase.updates or phase.env_steps)

    @property
    def min_warmup_steps(self) -> int:
        """Lower bound on the run's `warmup_steps`, the environment steps before the first online update."""
        return 0

    @property
    def random_steps(self) -> int:
        """Number of initial environment steps with uniform actions, part of the warm-up."""
        return 0

    @property
    def batches_per_update(self) -> int:
        """Number of batches of `batch_size` rows per online update."""
        return 1

    def cadence(self, budget: Budget) -> Cadence:
        """The schedule of online updates."""
        return budget.cadence()

    def offline_shares(self) -> Shares:
        """Shares of the real sources in a pretraining batch."""
        return Shares(offline=1.0)

    def online_shares(self) -> Shares:
        """Shares of the real sources in a fine-tuning batch."""
        return Shares(offline=0.5, online=0.5)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Fit all normalizers to the offline rows, once, so that trained critics keep their scale."""
        self.phase = phase
        if self.config.normalize_observations and not self.is_normalized and len(replay.offline):
            observations = replay.offline.all().observations
            for network in (part for part in vars(self).values() if isinstance(part, nn.Module)):
                for module in network.modules():
                    if isinstance(module, Normalizer):
                        module.fit(observations)
            self.is_normalized = True

    def begin_episode(self) -> None:
        """Do nothing."""

    def end_episode(self, episode: Episode) -> None:
        """Do nothing."""


def required(rng: ShardedRng | None) -> ShardedRng:
    """Return `rng`; raises TypeError if it is None, because exploration needs it."""
    if rng is None:
        raise TypeError("an exploring action needs rng=; without it act with deterministic=True")
    return rng
