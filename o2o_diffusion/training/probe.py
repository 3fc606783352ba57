"""Mean Q of fixed rows of the dataset, which shows a collapse before the score falls."""

import torch

from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.state import Stateful

ROWS = 256
WINDOW = 5_000
MAX_CHANGE = 0.5


class Probe(Stateful):
    """Measures a learner's mean Q on up to 256 fixed rows, evenly spaced in the offline pool.

    Warns if the mean changes by more than half within 5,000 environment steps, but not offline, where values start near
    zero.
    """

    state_fields = ("history",)

    def __init__(self, replay: Replay):
        size = len(replay.offline)
        rows = torch.linspace(0, max(size - 1, 0), min(size, ROWS), device=replay.device).long()
        self.batch = replay.offline[rows]
        self.history: list[list[float]] = []

    @torch.no_grad()
    def measure(self, agent: Agent) -> dict[str, torch.Tensor]:
        """{"probe_q": mean Q}, empty without a dataset."""
        if not len(self.batch):
            return {}
        return {"probe_q": agent.values(self.batch.observations, self.batch.actions).mean()}

    def change(self, q: float, env_steps: int) -> str | None:
        """Record `q`; returns a warning if it differs from a value of the last 5,000 steps by more than half."""
        self.history = [[step, old] for step, old in self.history if env_steps - WINDOW <= step < env_steps]
        self.history.append([env_steps, q])
        step, old = max(self.history, key=lambda known: abs(q - known[1]) - MAX_CHANGE * abs(known[1]))
        if abs(q - old) <= MAX_CHANGE * abs(old):
            return None
        self.history = self.history[-1:]  # warn once
        return f"mean Q of the probe rows moved from {old:.3g} to {q:.3g} between steps {step:.0f} and {env_steps}"
