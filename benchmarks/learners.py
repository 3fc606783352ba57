"""Updates per second of each learner against a plain IQL, on one core.

    python benchmarks/learners.py [--rounds 9] [--updates 50] [--output learners.json]

The reference is written as public PyTorch code usually is: one module per critic, default Adam, target averaging by a
loop, losses logged with `.item()`. Rounds are interleaved, so that whatever else the machine does slows all alike;
medians are reported. Batch 256, two hidden layers of 256, 17 observations, 6 actions.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from o2o_diffusion.learners.famo2o import FamO2O
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.types import Transitions, TransitionSpec

SPEC = TransitionSpec(observation_dim=17, action_dim=6)
BATCH_SIZE, HIDDEN = 256, 256


class ReferenceIQL:
    """IQL without care for speed."""

    def __init__(self):
        both = SPEC.observation_dim + SPEC.action_dim
        self.q1, self.q2, self.v = mlp(both, 1), mlp(both, 1), mlp(SPEC.observation_dim, 1)
        self.actor, self.log_std = (
            mlp(SPEC.observation_dim, SPEC.action_dim),
            nn.Parameter(torch.zeros(SPEC.action_dim)),
        )
        self.targets = [copy.deepcopy(q) for q in (self.q1, self.q2)]
        self.q_optimizer = torch.optim.Adam([*self.q1.parameters(), *self.q2.parameters()], lr=3e-4)
        self.v_optimizer = torch.optim.Adam(self.v.parameters(), lr=3e-4)
        self.actor_optimizer = torch.optim.Adam([*self.actor.parameters(), self.log_std], lr=3e-4)

    def update(self, batch: Transitions) -> dict[str, float]:
        """Value, critics, targets, actor."""
        x = torch.cat([batch.observations, batch.actions], dim=-1)
        with torch.no_grad():
            target_q = torch.minimum(*(q(x) for q in self.targets)).squeeze(-1)
            next_v = self.v(batch.next_observations).squeeze(-1)
        advantage = target_q - self.v(batch.observations).squeeze(-1)
        v_loss = ((0.7 - (advantage < 0).float()).abs() * advantage**2).mean()
        descend(self.v_optimizer, v_loss)
        y = batch.rewards + 0.99 * (1 - batch.terminations) * next_v
        q_loss = F.mse_loss(self.q1(x).squeeze(-1), y) + F.mse_loss(self.q2(x).squeeze(-1), y)
        descend(self.q_optimizer, q_loss)
        for target, source in zip(self.targets, (self.q1, self.q2), strict=True):
            for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
                slow.data.copy_(0.995 * slow.data + 0.005 * fast.data)
        weight = (3 * advantage.detach()).exp().clamp(max=100)
        std = self.log_std.clamp(-5, 2).exp()
        policy = torch.distributions.Normal(self.actor(batch.observations).tanh(), std)
        actor_loss = -(weight * policy.log_prob(batch.actions).sum(-1)).mean()
        descend(self.actor_optimizer, actor_loss)
        return {"value_loss": v_loss.item(), "critic_loss": q_loss.item(), "actor_loss": actor_loss.item()}


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def contestants() -> dict[str, tuple[Callable, str]]:
    """Name -> (update, matrix-product precision)."""
    rlpd = SAC.Config(ensemble_size=10, layer_norm=True, mean_q=True, actor_interval=20)
    return {
        "reference IQL": (ReferenceIQL().update, "highest"),
        "reference IQL, oneDNN": (ReferenceIQL().update, "medium"),
        "IQL": (IQL(IQL.Config(), SPEC, seed=0).update, "medium"),
        "FamO2O": (FamO2O(FamO2O.Config(), SPEC, seed=0).update, "medium"),
        "FamO2O, balance every update": (FamO2O(FamO2O.Config(balance_interval=1), SPEC, seed=0).update, "medium"),
        "SAC": (SAC(SAC.Config(), SPEC, seed=0).update, "medium"),
        "RLPD": (SAC(rlpd, SPEC, seed=0).update, "medium"),
    }


def updates_per_second(update: Callable, precision: str, batch: Transitions, updates: int) -> float:
    torch.set_float32_matmul_precision(precision)
    start = time.perf_counter()
    for _ in range(updates):
        update(batch)
    return updates / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--updates", type=int, default=50, help="updates in a round")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; standard output without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    states, actions = torch.randn(2, BATCH_SIZE, SPEC.observation_dim), 2 * torch.rand(BATCH_SIZE, SPEC.action_dim) - 1
    batch = Transitions.create(states[0], actions, torch.randn(BATCH_SIZE), states[1], torch.zeros(BATCH_SIZE))
    runs = contestants()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds + 1):
        for name, (update, precision) in runs.items():
            rates[name].append(updates_per_second(update, precision, batch, arguments.updates))
    medians = {name: round(statistics.median(rate[1:]), 1) for name, rate in rates.items()}  # the first round warms up
    reference = medians["reference IQL"]
    result = {
        name: {"updates_per_second": round(m, 1), "ratio": round(m / reference, 2)} for name, m in medians.items()
    }
    text = json.dumps(result, indent=2)
    print(text) if arguments.output is None else arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
