"""Adaptive behavior cloning (Zhao et al., 2022), https://arxiv.org/abs/2210.13846: TD3+BC steered by the return."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from o2o_diffusion.distributed import mean
from o2o_diffusion.learners.td3_bc import TD3BC
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Phase
from o2o_diffusion.types import Episode


class Controller(nn.Module):
    """The weight of cloning, the running average of scores, and the number of scores so far."""

    weight: Tensor
    average: Tensor
    episodes: Tensor

    def __init__(self, weight: float):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("episodes", torch.zeros(()))


class AdaptiveBC(TD3BC):
    """TD3+BC with ten critics and targets from random pairs; online, a PD controller sets the weight of cloning.

    After each episode of T steps with score R, the weight grows by T * (derivative * max(0, average - R) -
    proportional * (target_score - average)), clipped to [0, online_bc], and the average of R moves by `smoothing`.
    The authors normalize scores by the benchmark's reference returns, which no run can know; here 0 and 1 are the
    lowest and the highest return of an offline episode, unless set. Their average starts at the score of one
    evaluation episode, ours at that of the first online one.
    """

    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        """Defaults are the authors'; Adroit has `bc` and `online_bc` 8 and both gains times 20."""

        ensemble_size: Annotated[int, "number of critics", Ge(1)] = 10
        alpha: Annotated[float, "weight of Q, normalized by mean |Q|, relative to cloning", Ge(0)] = 1.0
        bc: Annotated[float, "weight of cloning, offline", Ge(0)] = 0.4
        online_bc: Annotated[float, "first and largest weight of cloning, online", Ge(0)] = 0.4
        proportional: Annotated[float, "gain of the distance to the target score, per step", Ge(0)] = 3e-5
        derivative: Annotated[float, "gain of a drop of the score, per step", Ge(0)] = 1e-4
        target_score: Annotated[float, "score from which on cloning is not loosened"] = 1.05
        smoothing: Annotated[float, "coefficient of the running average of scores", Interval(gt=0, le=1)] = 0.05
        low_return: Annotated[float | None, "return of score 0; null: lowest of the offline episodes"] = None
        high_return: Annotated[float | None, "return of score 1; null: highest of the offline episodes"] = None

    config: Config
    state_fields = (*TD3BC.state_fields, "return_range")

    def build(self) -> None:
        """Create TD3+BC's networks and the controller's state."""
        super().build()
        self.controller = Controller(self.config.bc).to(self.device)
        self.return_range = [0.0, 1.0]

    @property
    def bc(self) -> Tensor:
        """[1], the current weight of cloning."""
        return self.controller.weight[..., None]

    def policy_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B], the value that the actor maximizes: the mean of the critics."""
        return self.critic(observations, actions).mean(-2)

    def q_scale(self, q: Tensor) -> Tensor:
        """lambda = alpha / mean |Q|."""
        return self.config.alpha / mean(q.abs())

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        """Start a phase; the controller starts with the first online one."""
        if phase.is_online and not self.phase.is_online:
            self.controller.weight.fill_(self.config.online_bc)
            self.controller.episodes.zero_()
            low, high = self.config.low_return, self.config.high_return
            lowest, highest = episode_returns(replay).aminmax()
            self.return_range = [float(lowest) if low is None else low, float(highest) if high is None else high]
        super().begin_phase(phase, replay)

    def end_episode(self, episode: Episode) -> None:
        """Update the weight of cloning and the average score."""
        low, high = self.return_range
        score = (float(episode.rewards.sum()) - low) / (high - low if high > low else 1.0)
        c, average = self.config, float(self.controller.average) if self.controller.episodes else score
        change = c.derivative * max(0.0, average - score) - c.proportional * (c.target_score - average)
        self.controller.weight.add_(len(episode) * change).clamp_(0.0, c.online_bc)
        self.controller.episodes.add_(1)
        self.controller.average.fill_((1 - c.smoothing) * average + c.smoothing * score)


def episode_returns(replay: Replay) -> Tensor:
    """[number of offline episodes] undiscounted raw returns; 0 without any."""
    pool = replay.offline
    if not len(pool):
        return torch.zeros(1)
    numbers, episodes = pool.episodes[: len(pool)].unique(return_inverse=True)
    return torch.zeros(len(numbers), device=episodes.device).index_add(0, episodes, pool.all().rewards)
