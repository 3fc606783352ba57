"""Evaluation: whole episodes with deterministic actions, in environments of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from o2o_diffusion.data.scores import ReferenceScores
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.protocols import Agent
from o2o_diffusion.types import EnvironmentSpec


@dataclass(frozen=True)
class Evaluation:
    """What an agent achieved in each of `num_episodes` episodes; returns are raw and undiscounted.

    `successes` is None where the environment does not report success (at any step counts). The one number to
    show is `score`, in `unit`: the success rate of goal tasks, else the normalised score, else the success rate, else
    the mean return.
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
        """Mean number of steps."""
        return float(np.mean(self.lengths))

    @property
    def success_rate(self) -> float | None:
        """Share of successful episodes, in [0, 1]."""
        return None if self.successes is None else float(np.mean(self.successes))

    @property
    def normalized_score(self) -> float | None:
        """Mean of the normalised returns, 0 for random and 100 for expert; None without reference scores."""
        return None if self.references is None else float(self.references.normalize(np.array(self.returns)).mean())

    @property
    def score(self) -> float:
        """The one number to show."""
        return float(self._scores()[0].mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `score`; NaN for one episode."""
        return _standard_error(self._scores()[0])

    @property
    def unit(self) -> str:
        """What `score` is."""
        return self._scores()[1]

    def summary(self) -> dict[str, float | str | None]:
        """The numbers to log."""
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
            return self.references.normalize(np.array(self.returns)), f"normalised score ({self.references.source})"
        return (np.array(self.returns), "return") if success is None else (success, "success rate in %")


class Evaluator:
    """Runs an agent in environments that nothing else touches.

    Episode k begins with seed `seed + k` at every call, so that there is no state to save, equal agents get equal
    results, and exactly the first `episodes` episodes count, however long each of them is.
    """

    def __init__(
        self,
        environment: EnvironmentSpec,
        observation_keys: tuple[str, ...] = (),
        *,
        episodes: int,
        seed: int,
        max_parallel: int = 10,
        references: ReferenceScores | None = None,
        device: torch.device | str = "cpu",
    ):
        self.environments = [
            make_environment(environment, observation_keys) for _ in range(min(episodes, max_parallel))
        ]
        self.episodes, self.seed, self.references, self.device = episodes, seed, references, device
        self.is_goal_task = "desired_goal" in observation_keys

    @torch.no_grad()
    def __call__(self, agent: Agent, episodes: int | None = None) -> Evaluation:
        """Evaluate `agent` in `episodes` episodes, by default the number given at the beginning."""
        episodes = self.episodes if episodes is None else episodes
        waiting = iter(range(episodes))
        returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=int)
        successes: dict[int, bool] = {}
        running = {}  # environment -> its episode and last observation
        for environment, episode in zip(self.environments, waiting, strict=False):
            running[environment] = episode, self._reset(environment, episode)
        while running:
            observations = torch.from_numpy(np.stack([observation for _, observation in running.values()]))
            actions = agent.act(observations.to(self.device), deterministic=True).float().cpu().numpy()
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
                    following = next(waiting, None)
                    if following is not None:
                        running[environment] = following, self._reset(environment, following)
        reached = tuple(successes.get(episode, False) for episode in range(episodes)) if successes else None
        lists = tuple(returns.tolist()), tuple(lengths.tolist())
        return Evaluation(*lists, reached, self.references, self.is_goal_task)

    def _reset(self, environment, episode: int) -> np.ndarray:
        return environment.reset(seed=self.seed + episode)[0]


def _standard_error(values: np.ndarray) -> float:
    """Of the mean of independent `values`."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
