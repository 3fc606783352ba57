"""A generator whose rows are recognized in the batches of other libraries."""

import torch

from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions

MARK = 7.0
"""Observations of generated rows; real ones are below 1."""


class MarkedRows(Stateful):
    """Rows with the same observation; every second one ends the task with a reward of -1, the others have -2.

    `seen` is the number of online rows at the last refresh.
    """

    def __init__(self):
        self.seen = 0

    def share(self, replay: Replay) -> GeneratedShare:
        return GeneratedShare(share=0.5, online=0.5)

    def next_refresh(self, replay: Replay) -> Refresh:
        return Refresh(updates=1, rows=20, first=10, interval=100)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        self.seen = len(replay.online)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        return {}

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        observations, actions = torch.full((num_samples, 3), MARK), torch.full((num_samples, 1), 0.5)
        ends = (torch.arange(num_samples) % 2).float()
        return Transitions.create(observations, actions, ends - 2, observations + 1, ends, source=source)

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        return batch
