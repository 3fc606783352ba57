"""How far a shift of physics moves a world: docs/results/shifts.json and a table on the screen.

    PYTHONPATH=. python benchmarks/shifts.py [--environment HalfCheetah-v5 --behavior halfcheetah/step_102448]

For each factor: the return of the behavior there, and the dynamics error of rows of the unchanged world, in units of a
step. Where both hardly move, wrong offline rows are as good as true ones, and translating them can't pay.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from o2o_diffusion.environments.behaviors.policy import SavedPolicy, packaged_policy
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.quality.dynamics import Simulator, compare_next
from o2o_diffusion.storage import save_json
from o2o_diffusion.types import EnvironmentSpec, Transitions

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "shifts.json"
SHIFTS = {
    "gravity": (0.25, 0.5, 2.0),
    "friction": (0.1, 0.3, 3.0),
    "mass": (0.5, 2.0, 3.0),
    "damping": (0.2, 3.0),
    "actuator": (0.25, 0.5, 2.0),
}
NOISE = 0.3
"""Standard deviation of the noise on the actions of the rows that are compared."""


def rows(environment_id: str, policy: SavedPolicy, num_rows: int) -> Transitions:
    """Rows of the noisy policy in the unchanged world."""
    environment, random = make_environment(EnvironmentSpec(environment_id)), np.random.default_rng(0)
    observation, columns = None, []
    for _ in range(num_rows):
        if observation is None:
            observation, _ = environment.reset(seed=len(columns))
        action = policy(observation) + NOISE * random.standard_normal(policy.action_dim)
        action = action.clip(-1, 1).astype(np.float32)
        following, reward, terminated, truncated, _ = environment.step(action)
        columns.append((observation, action, reward, following, terminated))
        observation = None if terminated or truncated else following
    return Transitions.create(*(torch.from_numpy(np.array(c, np.float32)) for c in zip(*columns, strict=True)))


def mean_return(spec: EnvironmentSpec, policy: SavedPolicy, episodes: int) -> float:
    """Mean return of the deterministic policy."""
    environment, total = make_environment(spec), 0.0
    for seed in range(episodes):
        observation, ended = environment.reset(seed=seed)[0], False
        while not ended:
            observation, reward, terminated, truncated, _ = environment.step(policy(observation))
            total, ended = total + float(reward), terminated or truncated
    return total / episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="HalfCheetah-v5")
    parser.add_argument("--behavior", default="halfcheetah/step_102448")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--episodes", type=int, default=5)
    arguments = parser.parse_args()
    policy = SavedPolicy.load(packaged_policy(arguments.behavior))
    real, found = rows(arguments.environment, policy, arguments.rows), []
    print("| physics | return | dynamics error |\n|---|---|---|")
    for factors in [{}, *({name: factor} for name, values in SHIFTS.items() for factor in values)]:
        spec = EnvironmentSpec(arguments.environment, physics=factors)
        error = compare_next(real, Simulator(make_environment(spec))(real), real)["mean"]
        found.append({"physics": factors, "return": mean_return(spec, policy, arguments.episodes), "error": error})
        name = ", ".join(f"{name} x {factor:g}" for name, factor in factors.items()) or "unchanged"
        print(f"| {name} | {found[-1]['return']:,.0f} | {error:.3f} |", flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    save_json(RESULTS, results | {arguments.environment: {"settings": vars(arguments), "shifts": found}})


if __name__ == "__main__":
    main()
