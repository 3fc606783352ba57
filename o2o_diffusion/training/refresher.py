"""Refreshes of the generated rows: when one is due, the generator's updates, and the check that its rows must pass."""

from collections.abc import Mapping

import torch

from o2o_diffusion.distributed import broadcast, rank
from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.quality.gate import worst_auc
from o2o_diffusion.replay import Replay
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions


class Refresher(Stateful):
    """Drives a generator through its refreshes: `begin`, `update` until nothing is `left`, `finish`.

    Of a refresh `left` of `total` updates are to do; the last one began at environment step `last`. So far there were
    `count` of them, `refused` were not used, and `rows` generated rows were.
    """

    counters = ("left", "total", "last", "count", "refused", "rows")

    def __init__(self, generator: Generator):
        self.generator = generator
        self.left = self.total = self.count = self.refused = self.rows = 0
        self.last = -1

    def due(self, replay: Replay, env_steps: int) -> bool:
        """Whether the generator should be trained on what the replay holds now."""
        generator = self.generator
        waited = env_steps - self.last if self.last >= 0 else generator.refresh_interval
        enough = len(replay.online) >= generator.first_refresh and waited >= generator.refresh_interval
        return generator.num_samples > 0 and enough

    def begin(self, replay: Replay, agent: Agent, env_steps: int) -> None:
        """Prepare the generator's updates; there are none for a generator that is only drawn from."""
        self.generator.begin_refresh(replay, agent)
        self.left = self.total = self.generator.num_updates
        self.last = env_steps

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """One update of the generator."""
        metrics = self.generator.update(replay, agent)
        self.left -= 1
        return metrics

    def finish(self, replay: Replay, agent: Agent) -> dict[str, float]:
        """Replace the generated rows by new ones, or by none where a classifier tells them from real ones.

        Returns how many were asked for, how many came of it, and the classifier's AUC.
        """
        counts = self.generator.generated.counts(self.generator.num_samples)
        batches = {
            source: self.generator.sample(count, source=source, replay=replay, agent=agent)
            for source, count in counts.items()
        }
        auc = self.check(batches, replay)
        accepted = auc <= self.generator.max_auc
        replay.replace_generated(batches if accepted else {})
        rows = sum(len(batch) for batch in batches.values()) if accepted else 0
        self.count, self.refused, self.rows = self.count + 1, self.refused + (not accepted), self.rows + rows
        return {"rows": rows, "asked_rows": self.generator.num_samples, "auc": auc}

    def check(self, batches: Mapping[Source, Transitions], replay: Replay) -> float:
        """The main process's two-sample AUC of new rows, on every process; 0.5 where the generator asks for none."""
        if self.generator.max_auc >= 1:
            return 0.5
        auc = worst_auc(batches, replay) if rank() == 0 else 0.5
        return float(broadcast(torch.tensor(auc, device=replay.memory["rewards"].device)))
