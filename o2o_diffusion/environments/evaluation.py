"""Evaluate agents on whole episodes with deterministic actions, in separate environments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from o2o_diffusion.data.scores import ReferenceScores
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.environments.guard import GuardedEnvironment
from o2o_diffusion.protocols import Agent
from o2o_diffusion.types import EnvironmentSpec


@dataclass(frozen=True)
class Evaluation:
    """Results of an agent for each episode; returns are raw and undiscounted.

    `successes` (success at any step) is None if the environment does not report success. The headline number is
    `score`, in `unit`: the success rate of goal tasks, else the normalized score, else the success rate, else the mean
    return.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] | None
    references: ReferenceScores | None
    is_goal_task: bool

    @property
    def mean_return(self) -> float:
        """Mean raw return."""
        return float(np.mean(self.returns))

    @property
    def return_standard_error(self) -> float:
        """Standard error of the mean return; NaN for one episode."""
        return _standard_error(np.array(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean episode length in steps."""
        return float(np.mean(self.lengths))

    @property
    def success_rate(self) -> float | None:
        """Fraction of successful episodes, in [0, 1]."""
        return None if self.successes is None else float(np.mean(self.successes))

    @property
    def normalized_score(self) -> float | None:
        """Mean of the normalized returns, 0 for random and 100 for expert; None without reference scores."""
        return None if self.references is None else float(self.references.normalize(np.array(self.returns)).mean())

    @property
    def score(self) -> float:
        """The headline number."""
        return float(self._scores()[0].mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `score`; NaN for one episode."""
        return _standard_error(self._scores()[0])

    @property
    def unit(self) -> str:
        """Unit of `score`."""
        return self._scores()[1]

    def summary(self) -> dict[str, float | str | None]:
        """The metrics to log."""
        return {
            "score": self.score,
            "score_se": self.standard_error,
            "unit": self.unit,
            "mean_return": self.mean_return,
            "normalized_score": self.normalized_score,
            "success_rate": self.success_rate,
            "mean_length": self.mean_length,
            "episodes": len(self.returns),
        }

    def _scores(self) -> tuple[np.ndarray, str]:
        success = None if self.successes is None else 100.0 * np.array(self.successes)
        if self.is_goal_task and success is not None:
            return success, "success rate in %"
        if self.references is not None:
            return self.references.normalize(np.array(self.returns)), f"normalized score ({self.references.source})"
        return (np.array(self.returns), "return") if success is None else (success, "success rate in %")


class Evaluator:
    """Evaluates an agent in dedicated environments.

    Episode k is reset with `seed + k`, and an agent that samples during evaluation gets the same random numbers on each
    call: there is no state to save, equal agents get equal results, and exactly the first `episodes` episodes count.
    A call of an environment may take `timeout` seconds (0: no limit). Raises StepFault if an environment fails.
    """

    def __init__(
        self,
        environment: EnvironmentSpec,
        *,
        episodes: int,
        seed: int,
        max_parallel: int = 10,
        references: ReferenceScores | None = None,
        timeout: float = 0.0,
        device: torch.device | str = "cpu",
    ):
        count = min(episodes, max_parallel)
        self.environments = [GuardedEnvironment(make_environment(environment), timeout=timeout) for _ in range(count)]
        self.episodes, self.seed, self.references, self.device = episodes, seed, references, device
        self.is_goal_task = "desired_goal" in environment.observation_keys

    @torch.no_grad()
    def __call__(self, agent: Agent, episodes: int | None = None) -> Evaluation:
        """Evaluate `agent` on `episodes` episodes, by default the number given to the constructor."""
        episodes = self.episodes if episodes is None else episodes
        waiting, rng = iter(range(episodes)), ShardedRng(self.seed, self.device, shared=False)
        returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=int)
        successes: dict[int, bool] = {}
        running = {}  # environment -> (episode, last observation)
        for environment, episode in zip(self.environments, waiting, strict=False):
            running[environment] = episode, self._reset(environment, episode)
        while running:
            observations = torch.from_numpy(np.stack([observation for _, observation in running.values()]))
            actions = agent.act(observations.to(self.device), deterministic=True, rng=rng).float().cpu().numpy()
            for action, (environment, (episode, _)) in zip(actions, list(running.items()), strict=True):
                observation, reward, terminated, truncated, info = environment.step(action)
                returns[episode] += float(reward)
                lengths[episode] += 1
                success = info.get("success", info.get("is_success"))
                if success is not None:
                    successes[episode] = successes.get(episode, False) or bool(success)
                running[environment] = episode, observation
                if terminated or truncated:
                    del running[environment]
                    next_episode = next(waiting, None)
                    if next_episode is not None:
                        running[environment] = next_episode, self._reset(environment, next_episode)
        reached = tuple(successes.get(episode, False) for episode in range(episodes)) if successes else None
        lists = tuple(returns.tolist()), tuple(lengths.tolist())
        return Evaluation(*lists, reached, self.references, self.is_goal_task)

    def _reset(self, environment, episode: int) -> np.ndarray:
        return environment.reset(seed=self.seed + episode)[0]


def _standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent `values`."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
