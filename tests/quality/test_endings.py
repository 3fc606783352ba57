import torch

from o2o_diffusion.quality.endings import Endings
from o2o_diffusion.types import Transitions


def rows(size: int, seed: int) -> Transitions:
    """Rows that end where the first entry of s' is above 1."""
    random = torch.Generator().manual_seed(seed)
    states, following = torch.randn(size, 2, generator=random), torch.randn(size, 2, generator=random)
    ended = (following[:, 0] > 1).float()
    return Transitions.create(states, torch.zeros(size, 1), torch.zeros(size), following, ended)


def test_endings_that_are_missed_and_false():
    endings, batch = Endings(rows(3_000, 0)), rows(1_000, 1)
    found = endings(batch)
    assert found["missed_endings"] < 0.05 and found["false_endings"] < 0.05
    ended = batch.terminations.nonzero().flatten()
    marks = batch.terminations.clone()
    marks[ended[::4]] = 0
    marks[(batch.next_observations[:, 0] < 0).nonzero().flatten()[: len(ended)]] = 1
    found = endings(batch.where(terminations=marks))
    assert abs(found["missed_endings"] - 0.25) < 0.05 and abs(found["false_endings"] - 4 / 7) < 0.05


def test_too_few_endings_give_no_number():
    batch = rows(1_000, 0)
    none = batch.where(terminations=torch.zeros(1_000))
    assert Endings(none)(batch) == {} and Endings(batch)(rows(5, 1)) == {}
    assert set(Endings(batch)(none)) == {"missed_endings"}


def test_endings_near_a_goal_are_found():
    def reach(size: int, seed: int) -> Transitions:
        batch = rows(size, seed)
        goals = batch.observations[:, 1:]
        following = torch.cat([batch.next_observations[:, :1], goals], 1)
        ended = ((following[:, 0] - goals[:, 0]).abs() < 0.3).float()
        return batch.where(next_observations=following, terminations=ended)

    found = Endings(reach(3_000, 0))(reach(1_000, 1))
    assert found["missed_endings"] < 0.05 and found["false_endings"] < 0.05
