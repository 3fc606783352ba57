"""Reference points of the suite's tasks, in docs/results/suite_references.json and as a table on the screen.

    PYTHONPATH=. python benchmarks/suite.py [--only NAME ...] [--door FOLDER] [--updates 3000] [--episodes 20]

For each file in configs/experiment/suite: uniform actions, the data, behavior cloning, cloning of the best tenth of the
episodes, and the best packaged behavior. Tasks that are not named keep their numbers.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from o2o_diffusion.data.loading import make_replay
from o2o_diffusion.data.spaces import ActionBounds
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.environments.behaviors.factory import make_behavior
from o2o_diffusion.environments.environment import make_raw_environment
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.environments.tasks import Task
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.replay import Draw
from o2o_diffusion.schedule import Phase
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.storage import save_json
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.session import processor
from o2o_diffusion.types import Episode

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "suite_references.json"
BEST = {
    "HalfCheetah-v5": "halfcheetah/step_102448",
    "Hopper-v5": "hopper/step_42525",
    "InvertedDoublePendulum-v5": "doublependulum/step_4000",
    "Reacher-v5": "reach",
    "PointMaze_UMaze-v3": "waypoints",
    "PointMaze_Medium-v3": "waypoints",
}
"""The best packaged behavior of each environment; its actions are deterministic."""
COLUMNS = ("random", "data", "cloning", "cloning of the best tenth", "behavior")


class Uniform:
    """An agent with uniform actions."""

    def __init__(self, action_dim: int):
        self.action_dim = action_dim

    def act(self, observations: torch.Tensor, *, deterministic: bool = False, rng: ShardedRng) -> torch.Tensor:
        """[B, action_dim] in [-1, 1]."""
        return 2 * rng.uniform(len(observations), self.action_dim) - 1


def clone(task: Task, episodes: tuple[Episode, ...], hidden: tuple[int, ...], updates: int) -> IQL:
    """Behavior cloning of `episodes`: IQL's actor with equal weights for all rows."""
    dataset = replace(task.dataset, episodes=episodes)
    config = IQL.Config(hidden=hidden, learning_rate=1e-3, inverse_temperature=0.0, actor_tau=1.0)
    replay, learner, rng = make_replay(dataset), IQL(config, task.spec, seed=0), ShardedRng(0)
    replay.transform, zeros = task.transform, torch.zeros(config.batch_size, dtype=torch.long)
    learner.begin_phase(Phase("pretrain", updates=updates), replay)
    for _ in range(updates):
        draw = Draw.create(rng.integers(len(replay.offline), config.batch_size), zeros)
        learner.update(replay.scaled(replay.gather(draw)))
    return learner


def best_tenth(task: Task) -> tuple[Episode, ...]:
    """The tenth of the episodes with the highest discounted returns, at least one."""
    order = sorted(task.dataset.episodes, key=lambda episode: -float(episode.returns(task.transform, 0.99)[0]))
    return tuple(order[: max(1, len(order) // 10)])


def behavior_returns(task: Task, name: str, episodes: int) -> list[float]:
    """Returns of a packaged behavior in the task's environment."""
    environment, returns = make_raw_environment(task.environment), []
    bounds = ActionBounds.of(environment.action_space, name)
    for seed in range(episodes):
        behavior = make_behavior(name, environment, stochastic=False, random=np.random.default_rng(seed))
        observation, _ = environment.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action = bounds.to_box(behavior(observation).astype(np.float32))
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def measure(name: str, overrides: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Reference points of the task of one experiment, as scores and returns."""
    settings = compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [f"experiment=suite/{name}", *overrides])
    task: Task = settings.components["task"].build()
    evaluator = Evaluator(task.environment, episodes=arguments.episodes, seed=10_000, references=task.scores)
    returns = {"random": list(evaluator(Uniform(task.spec.action_dim)).returns)}
    if task.dataset.episodes:
        hidden = settings.components["learner"].config.hidden
        returns["data"] = [float(episode.rewards.sum()) for episode in task.dataset.episodes]
        for column, part in (("cloning", task.dataset.episodes), ("cloning of the best tenth", best_tenth(task))):
            returns[column] = list(evaluator(clone(task, part, hidden, arguments.updates)).returns)
    if task.environment.id in BEST:
        returns["behavior"] = behavior_returns(task, BEST[task.environment.id], arguments.episodes)
    scale = task.scores.normalize if task.scores else lambda values: 100 * values
    return {
        "episodes": task.dataset.num_episodes,
        "transitions": task.dataset.num_transitions,
        "returns": {column: float(np.mean(values)) for column, values in returns.items()},
        "scores": {column: float(np.mean(scale(np.array(values)))) for column, values in returns.items()},
        "deviations": {column: float(np.std(values)) for column, values in returns.items()},
        "settings": {"updates": arguments.updates, "evaluation_episodes": arguments.episodes},
        "processor": processor(),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown table of scores, with returns in brackets."""
    lines = ["| task | rows | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, row in sorted(results.items()):
        cells = [f"{row['scores'][c]:.1f} ({row['returns'][c]:.4g})" if c in row["scores"] else "-" for c in COLUMNS]
        lines.append(f"| {name} | {row['transitions']:,} in {row['episodes']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None)
    parser.add_argument("--door", help="dataset of human demonstrations; without it door-human is left out")
    parser.add_argument("--updates", type=int, default=3_000)
    parser.add_argument("--episodes", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    names = sorted(path.stem for path in (CONFIGS / "experiment" / "suite").glob("*.yaml"))
    for name in arguments.only or [name for name in names if name != "door-human" or arguments.door]:
        overrides = [f"task.dataset={arguments.door}"] if name == "door-human" else []
        results[name] = measure(name, overrides, arguments)
        save_json(RESULTS, results)
        print(f"{name}: {results[name]['scores']}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
