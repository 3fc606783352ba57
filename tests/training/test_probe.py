import torch

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.replay import Replay
from o2o_diffusion.training.probe import Probe
from o2o_diffusion.types import Source, Transitions, TransitionSpec


class Values(NoAgent):
    """Q is the sum of the action."""

    def values(self, observations, actions):
        return actions.sum(1)


def probe(size: int) -> Probe:
    replay = Replay(TransitionSpec(1, 1), {Source.OFFLINE: 1_000})
    column = torch.arange(size).float()
    replay.offline.append(Transitions.create(column[:, None], column[:, None], column, column[:, None], 0 * column))
    return Probe(replay)


def test_the_mean_is_that_of_fixed_rows_spread_over_the_dataset():
    wide = probe(1_000)
    assert len(wide.batch) == 256 and wide.batch.actions[0] == 0 and wide.batch.actions[-1] == 999
    assert torch.isclose(wide.measure(Values())["probe_q"], wide.batch.actions.mean())
    assert probe(0).measure(Values()) == {}


def test_a_change_by_more_than_half_within_the_window_is_said_once():
    watched = probe(10)
    assert watched.change(100.0, 1_000) is None
    assert watched.change(60.0, 3_000) is None  # 40 percent
    assert watched.change(45.0, 5_999) == "mean Q of the probe rows moved from 100 to 45 between steps 1000 and 5999"
    assert watched.change(45.0, 6_500) is None
    assert watched.change(20.0, 12_000) is None  # the last one is too long ago
    restored = probe(10)
    restored.load_state_dict(watched.state_dict())
    assert restored.change(31.0, 12_500) is not None
