import pytest
import torch

from o2o_diffusion.quality.gate import aucs, worst_auc
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions, TransitionSpec


def rows(size: int, shift: float, seed: int) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    s, a = shift + torch.randn(size, 2, generator=g), torch.rand(size, 1, generator=g)
    return Transitions.create(s, a, torch.randn(size, generator=g), s, torch.zeros(size))


def replay(online: int) -> Replay:
    store = Replay(TransitionSpec(2, 1), {Source.OFFLINE: 600, Source.ONLINE: 600})
    store.offline.append(rows(600, 0.0, seed=0))
    store.online.append(rows(online, 5.0, seed=1))
    return store


def test_each_label_is_held_against_its_own_pool_and_the_worst_counts():
    generated = {Source.GENERATED_OFFLINE: rows(600, 0.0, seed=2), Source.GENERATED_ONLINE: rows(600, 0.0, seed=3)}
    found = aucs(generated, replay(600))
    assert found[Source.GENERATED_OFFLINE] < 0.6 and found[Source.GENERATED_ONLINE] > 0.95
    assert worst_auc(generated, replay(600)) == max(found.values())


@pytest.mark.parametrize(("size", "online", "expected"), [(0, 600, 1.0), (600, 0, 0.5)])
def test_no_rows_are_no_good_rows_and_nothing_real_is_nothing_to_tell_from(size, online, expected):
    assert worst_auc({Source.GENERATED_ONLINE: rows(size, 5.0, seed=2)}, replay(online)) == expected
