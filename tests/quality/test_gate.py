import pytest
from builders import make_replay, raw_batch

from o2o_diffusion.quality.gate import aucs, judge, worst_auc
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Gate
from o2o_diffusion.types import Source


def replay(online: int = 600) -> Replay:
    """600 offline rows around 0 and `online` online ones around 5."""
    return make_replay(offline=600, online=online, centers=(0.0, 5.0))


def test_each_label_is_held_against_its_own_pool_and_the_worst_counts():
    generated = {Source.GENERATED_OFFLINE: raw_batch(600, seed=2), Source.GENERATED_ONLINE: raw_batch(600, seed=3)}
    found = aucs(generated, replay())
    assert found[Source.GENERATED_OFFLINE] < 0.6 and found[Source.GENERATED_ONLINE] > 0.95
    assert worst_auc(generated, replay()) == max(found.values())


@pytest.mark.parametrize(("size", "online", "expected"), [(0, 600, 1.0), (600, 0, 0.5)])
def test_no_rows_are_no_good_rows_and_nothing_real_is_nothing_to_tell_from(size, online, expected):
    generated = raw_batch(size, seed=2, center=5.0)
    assert worst_auc({Source.GENERATED_ONLINE: generated}, replay(online)) == expected


def test_the_verdict_is_the_worst_auc_against_the_limit():
    good = {Source.GENERATED_OFFLINE: raw_batch(600, seed=2)}
    bad = good | {Source.GENERATED_ONLINE: raw_batch(500, seed=3)}
    accepted, refused = (judge(batches, 1_200, replay(), Gate(max_auc=0.7)) for batches in (good, bad))
    assert accepted.accepted and accepted.auc == pytest.approx(worst_auc(good, replay()))
    assert str(accepted).startswith("accepted: ")
    assert (accepted.rows, accepted.asked_rows, accepted.max_auc) == (600, 1_200, 0.7)
    assert not refused.accepted and refused.auc > 0.95 and refused.rows == 1_100
    assert str(refused).startswith("refused: ") and str(refused).endswith("(limit 0.7)")


def test_an_open_gate_accepts_unmeasured_rows():
    verdict = judge({Source.GENERATED_ONLINE: raw_batch(600, seed=3)}, 600, replay(), Gate())
    assert verdict.accepted and verdict.auc == 0.5
