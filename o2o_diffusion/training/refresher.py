"""Refreshes of the generated rows: the schedule, the generator's updates, and the gate for new rows."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.quality.gate import judge
from o2o_diffusion.quality.verdict import Verdict
from o2o_diffusion.replay import Replay
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Transitions


class Refresher(Stateful):
    """Runs a generator's refreshes, in fine-tuning, in standalone training and in the plugin.

    `updates_due` of the current refresh's `total` updates remain; the last refresh began at environment step `last`
    (-1: none so far). `count` refreshes are finished, and the gate refused `refused` of them; `rows` is the total
    number of generated rows used. `accepted` is the last verdict. The generator sees only rows that are not held out.
    """

    state_fields = ("updates_due", "total", "last", "count", "refused", "rows", "accepted")

    def __init__(self, generator: Generator):
        self.generator = generator
        self.updates_due = self.total = self.count = self.refused = self.rows = 0
        self.last, self.accepted = -1, False
        self.training_rows: list[Replay] = []  # one during a refresh; a list is not saved but copied again

    def due(self, replay: Replay, env_steps: int) -> bool:
        """Whether to start a refresh on the current rows of the replay."""
        refresh = self.generator.next_refresh(replay)
        if not (refresh.updates or refresh.rows) or not replay.num_real:
            return False
        if self.last < 0:
            return len(replay.online) >= refresh.first
        return 0 < refresh.interval <= env_steps - self.last

    def begin(self, replay: Replay, agent: Agent, env_steps: int) -> None:
        """Start a refresh."""
        self.updates_due = self.total = self.generator.next_refresh(replay).updates
        self.training_rows.clear()
        self.generator.begin_refresh(self.training(replay), agent)
        self.last = env_steps

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Run one update of the generator."""
        metrics = self.generator.update(self.training(replay), agent)
        self.updates_due -= 1
        return metrics

    def finish(self, replay: Replay, agent: Agent) -> Verdict:
        """Sample new rows and count the refresh; see `redraw`."""
        verdict = self.redraw(replay, agent)
        self.count, self.refused = self.count + 1, self.refused + (not verdict.accepted)
        return verdict

    def redraw(self, replay: Replay, agent: Agent) -> Verdict:
        """Replace the generated rows with new ones if the gate accepts them, or else remove them.

        If the generator makes its rows at batch time, the rows that the gate judges are not stored.
        """
        refresh, share = self.generator.next_refresh(replay), self.generator.share(replay)
        counts = share.counts(refresh.rows)
        if share.at_batch_time:
            counts = dict.fromkeys(share.counts(refresh.gate.rows), refresh.gate.rows)
        options = {"replay": self.training(replay), "agent": agent}
        batches = {source: self.generator.sample(count, source=source, **options) for source, count in counts.items()}
        batches = {source: batch[replay.spec.flatten(batch).isfinite().all(1)] for source, batch in batches.items()}
        verdict = judge(batches, counts, replay, refresh.gate)
        replay.replace_generated(batches if verdict.accepted and not share.at_batch_time else {})
        self.accepted = verdict.accepted
        self.training_rows.clear()
        self.rows += replay.num_generated
        return verdict

    def refuse(self, replay: Replay) -> None:
        """Remove the rows of the last refresh, which the gate accepted."""
        self.rows -= replay.num_generated
        self.refused += 1
        self.accepted = False
        replay.replace_generated({})

    def refresh(
        self,
        replay: Replay,
        agent: Agent,
        env_steps: int = 0,
        *,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> Verdict:
        """Run a whole refresh; `progress` wraps the range of updates, as tqdm does."""
        self.train(replay, agent, env_steps, progress=progress)
        return self.finish(replay, agent)

    @torch.enable_grad()
    def train(
        self,
        replay: Replay,
        agent: Agent,
        env_steps: int = 0,
        *,
        progress: Callable[[range], Iterable[int]] = iter,
    ) -> None:
        """Run all updates of a refresh, without sampling rows."""
        self.begin(replay, agent, env_steps)
        for _ in progress(range(self.updates_due)):
            self.update(replay, agent)

    def training(self, replay: Replay) -> Replay:
        """The rows of `replay` that the generator is trained on; the same throughout a refresh."""
        if not self.training_rows:
            self.training_rows.append(replay.part(held_out=False))
        return self.training_rows[0]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        super().load_state_dict(state)
        self.training_rows.clear()

    def is_active(self, replay: Replay) -> bool:
        """Whether batches include generated rows, stored or made at batch time.

        Rows made at batch time are included once the gate accepts them, or always if the generator has no refreshes.
        """
        if not self.generator.share(replay).at_batch_time:
            return replay.num_generated > 0
        refresh = self.generator.next_refresh(replay)
        return self.accepted if refresh.updates or refresh.rows else True

    def augment(self, batch: Transitions, replay: Replay, agent: Agent) -> Transitions:
        """Let a generator that works at batch time replace the marked rows of `batch`, unless it is inactive."""
        if not (self.generator.share(replay).at_batch_time and self.is_active(replay)):
            return batch
        return self.generator.augment(batch, replay=replay, agent=agent)
