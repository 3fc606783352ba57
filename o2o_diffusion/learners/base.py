"""What learners have in common: networks of their seed, acting, the usual phases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import Noise
from o2o_diffusion.errors import InputError
from o2o_diffusion.networks.actors import Gaussian, TanhGaussian
from o2o_diffusion.networks.normalizer import Normalizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase, Shares, per_step
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Episode, Metrics, Transitions, TransitionSpec


class BaseLearner(Stateful, ABC):
    """A learner with a policy and a critic ensemble; a method adds networks, losses and `update`.

    `noise` serves updates and is drawn alike on every process; `acting_noise` serves acting, which only the main
    process does.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings common to all learners."""

        discount: Annotated[float, "discount factor of returns"] = 0.99
        batch_size: Annotated[int, "transitions in an update, over all processes"] = 256
        learning_rate: Annotated[float, "Adam's rate, for every network"] = 3e-4
        hidden: Annotated[tuple[int, ...], "widths of the hidden layers of every network"] = (256, 256)
        tau: Annotated[float, "share of the online critic that a target critic takes over at each update"] = 0.005
        normalize_observations: Annotated[bool, "standardise observations by the offline rows' statistics"] = True

    config: Any
    critic: nn.Module
    counters = ("is_normalized",)

    def __init__(self, config: Any, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec, self.device = config, spec, torch.device(device)
        self.batch_size: int = config.batch_size
        self.is_normalized = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build()
        self.noise = Noise(seed + 1_000_003, device)  # other numbers than those of the weights
        self.acting_noise = Noise(seed + 2_000_003, device, shared=False)

    @abstractmethod
    def build(self) -> None:
        """Make networks, equal targets and optimisers, on `self.device`."""

    @abstractmethod
    def update(self, batch: Transitions) -> Metrics:
        """One update on this process's rows."""

    @abstractmethod
    def policy(self, observations: Tensor) -> Gaussian | TanhGaussian:
        """The distribution of actions in `observations` [B, observation_dim]."""

    @torch.no_grad()
    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        """[B, observation_dim] -> [B, action_dim] in [-1, 1]: the policy's mode, or a sample to explore."""
        policy = self.policy(observations)
        return (policy.mode if deterministic else policy.sample(self.acting_noise)).clamp(-1, 1)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the least of the critics' estimates."""
        return self.critic(observations, actions).amin(0)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B] log-density of `actions` under the policy."""
        return self.policy(observations).log_prob(actions)

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """Pretrain on offline rows, warm up with a frozen policy, fine-tune on both halves; empty phases left out.

        Raises InputError where the warm-up leaves no step to learn in.
        """
        if 0 < budget.online_steps <= budget.warmup_steps:
            raise InputError(
                f"{type(self).__name__} warms up for {budget.warmup_steps:,} environment steps, which leaves none of"
                f" online_steps={budget.online_steps} to learn in"
            )
        phases = (
            Phase("pretrain", updates=budget.pretrain_updates, shares=Shares(offline=1.0)),
            Phase("warmup", env_steps=min(budget.warmup_steps, budget.online_steps), learns=False),
            Phase(
                "finetune",
                env_steps=max(budget.online_steps - budget.warmup_steps, 0),
                cadence=per_step(budget.updates_per_step),
                shares=Shares(offline=0.5, online=0.5),
            ),
        )
        return tuple(phase for phase in phases if phase.updates or phase.env_steps)

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Fit every network's normaliser on the offline rows, once: critics trained on one scale must keep it."""
        if self.config.normalize_observations and not self.is_normalized and len(replay.offline):
            observations = replay.offline.fields["observations"][: len(replay.offline)]
            for network in (part for part in vars(self).values() if isinstance(part, nn.Module)):
                for module in network.modules():
                    if isinstance(module, Normalizer):
                        module.fit(observations)
            self.is_normalized = True

    def begin_episode(self) -> None:
        """Nothing to do."""

    def end_episode(self, episode: Episode) -> None:
        """Nothing to do."""
