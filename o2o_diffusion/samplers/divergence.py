"""Priorities by the distance to the behavior: BAQ (Zu et al., 2025), https://arxiv.org/abs/2511.03695, re-derived."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from o2o_diffusion.distributed import seeded
from o2o_diffusion.networks.actors import DeterministicActor
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.prioritized import Prioritized
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec

LOWEST, HIGHEST = 0.1, 10.0


class Divergence(Prioritized):
    """The mixture's shares; within the pools, online rows unlike the behavior and offline rows like it come first.

    A clone b(s) of the offline actions takes a step per draw until there are online rows. The distance of a row is
    d = |a - b(s)|^2 / A in units of its running mean over offline rows; priorities are exp(-d) offline and
    (d + 0.001)^alpha online, both within [0.1, 10], updated for the rows of the last draw. Draws are uniform until
    then. The paper was not at hand: formulas and values are this package's, and `beta` stays constant.
    """

    @dataclass(frozen=True)
    class Config(Prioritized.Config):
        """Chosen values; `alpha` is the exponent of online priorities."""

        epsilon: Annotated[float, "added to distances, so that every row can be drawn", Gt(0)] = 1e-3
        hidden: Annotated[tuple[int, ...], "hidden layer widths of the clone", Ge(1)] = (256, 256)
        learning_rate: Annotated[float, "Adam learning rate of the clone", Gt(0)] = 3e-4
        clone_batch_size: Annotated[int, "rows per step of the clone", Ge(1)] = 256

    config: Config
    state_fields = (*Prioritized.state_fields, "num_steps", "unit")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        super().__init__(config, spec, seed=seed, device=device)
        with seeded(seed):
            self.clone = DeterministicActor(spec.observation_dim, spec.action_dim, config.hidden).to(device)
        self.optimizer = Optimizer(self.clone.parameters(), config.learning_rate)
        self.num_steps, self.unit = 0, torch.ones((), device=device)

    @property
    def exponent(self) -> float:
        """1: the priorities have theirs already."""
        return 1.0

    def measure(self, agent: Agent, batch: Transitions, replay: Replay) -> tuple[Tensor, Metrics]:
        """[B] priorities of the raw rows `batch`, and metrics; 1, and a step of the clone, without online rows."""
        if len(replay.offline) and not len(replay.online):
            return torch.ones_like(batch.rewards), {"clone_loss": self.fit(replay)}
        distance = self.distance(batch) / self.unit.to(batch.rewards.device)
        online = (distance + self.config.epsilon) ** self.config.alpha
        is_online = batch.sources % 2 == int(Source.ONLINE)
        priorities = torch.where(is_online, online, (-distance).exp()).clamp(LOWEST, HIGHEST)
        return priorities, {"distance": distance.mean()}

    @torch.enable_grad()
    def fit(self, replay: Replay) -> Tensor:
        """One step of the clone on random offline rows; returns its loss, the mean distance."""
        if not self.num_steps:
            self.clone.normalizer.fit(replay.offline.all().observations)
        self.num_steps += 1
        rows = self.rng.integers(len(replay.offline), self.config.clone_batch_size).to(replay.device)
        loss = self.optimizer.step(self.distance(replay.offline[rows]).mean())
        self.unit = self.unit.lerp(loss.clamp(min=1e-6), max(0.01, 1 / self.num_steps))
        return loss

    def distance(self, batch: Transitions) -> Tensor:
        """[B], |a - b(s)|^2 / A."""
        return (batch.actions - self.clone(batch.observations)).square().mean(-1)
