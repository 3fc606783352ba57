"""Pretraining updates per second of every learner's YAML file, compared with a plain IQL, on one core.

    python benchmarks/learners.py [--rounds 9] [--seconds 0.3] [--output learners.json]

The reference is written like typical public PyTorch code: one module per critic, default Adam, target averaging in a
loop, losses logged with `.item()`. Rounds are interleaved, so that other load on the machine slows all equally; medians
are reported. Batch size 256, 17-d observations, 6-d actions, each learner's own networks; the reference has two hidden
layers of 256.
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

from o2o_diffusion.settings import CONFIGS, available, compose
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Transitions, TransitionSpec

SPEC = TransitionSpec(observation_dim=17, action_dim=6)
BATCH_SIZE, HIDDEN, DISCOUNT = 256, 256, 0.99


class ReferenceIQL:
    """IQL, not optimized for speed."""

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
        """Update value, critics, targets and actor."""
        x = torch.cat([batch.observations, batch.actions], dim=-1)
        with torch.no_grad():
            target_q = torch.minimum(*(q(x) for q in self.targets)).squeeze(-1)
            next_v = self.v(batch.next_observations).squeeze(-1)
        advantage = target_q - self.v(batch.observations).squeeze(-1)
        v_loss = ((0.7 - (advantage < 0).float()).abs() * advantage**2).mean()
        descend(self.v_optimizer, v_loss)
        y = batch.rewards + DISCOUNT * (1 - batch.terminations) * next_v
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
    """Name -> (update, matmul precision)."""
    runs = {name: (ReferenceIQL().update, p) for name, p in (("reference", "highest"), ("reference, oneDNN", "medium"))}
    for name in available("learner"):
        settings = compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [f"learner={name}"])
        runs[name] = (settings.components["learner"].build(SPEC, seed=0, device="cpu").update, "medium")
    return runs


def updates_per_second(update: Callable, precision: str, batch: Transitions, seconds: float) -> float:
    torch.set_float32_matmul_precision(precision)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        update(batch)
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a learner's turn in a round")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; standard output without it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    states, actions = torch.randn(2, BATCH_SIZE, SPEC.observation_dim), 2 * torch.rand(BATCH_SIZE, SPEC.action_dim) - 1
    discounts = torch.full((BATCH_SIZE,), DISCOUNT)
    fields = (states[0], actions, torch.randn(BATCH_SIZE), states[1], torch.zeros(BATCH_SIZE))
    batch = Transitions.create(*fields, discounts=discounts)
    runs = contestants()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds + 1):
        for name, (update, precision) in runs.items():
            rates[name].append(updates_per_second(update, precision, batch, arguments.seconds))
    medians = {name: round(statistics.median(rate[1:]), 1) for name, rate in rates.items()}  # the first round warms up
    reference = medians["reference"]
    result = {
        name: {"updates_per_second": round(m, 1), "ratio": round(m / reference, 2)} for name, m in medians.items()
    }
    text = json.dumps(result, indent=2)
    print(text) if arguments.output is None else arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
