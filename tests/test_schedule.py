import pytest

from o2o_diffusion.schedule import NEVER, Budget, Cadence, GeneratedShare, Phase, Shares
from o2o_diffusion.types import Source


def test_updates_are_due_after_every_step():
    assert [Cadence(5).due(step) for step in (1, 2, 3)] == [5, 5, 5]
    assert [NEVER.due(step, episode_length=step) for step in (1, 2)] == [0, 0]


def test_fractions_of_an_update_add_up():
    assert [Cadence(0.5).due(step) for step in range(1, 7)] == [0, 1, 0, 1, 0, 1]
    assert sum(Cadence(0.3).due(step) for step in range(1, 101)) == 30
    assert [Cadence(0.3, every=5).due(step) for step in (5, 10)] == [1, 2]


def test_updates_are_due_after_blocks():
    block = Cadence(10, every=1000)
    assert [block.due(step) for step in (999, 1000, 1001, 2000)] == [0, 10_000, 0, 10_000]
    assert block.due(999, episode_length=999) == 0  # episodes do not matter


def test_updates_are_due_after_episodes():
    episodes = Cadence(2, every=0)
    assert [episodes.due(7, length) for length in (None, 7)] == [0, 14]
    halves = Cadence(0.5, every=0)
    assert [halves.due(3, 3), halves.due(6, 3)] == [1, 2]  # together half of 6


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (1000, 80), (50, 50), (0, 0)])
def test_blocks_are_no_longer_than_the_fine_tuning(steps, every):
    budget = Budget(pretrain_updates=0, online_steps=100, warmup_steps=20, updates_per_step=3)
    assert budget.cadence(steps) == Cadence(3, every=every)


def test_a_budget_has_updates_after_every_step_by_default():
    budget = Budget(pretrain_updates=0, online_steps=10, updates_per_step=0.5)
    assert budget.cadence() == Cadence(0.5, every=1)
    assert Budget(pretrain_updates=5, online_steps=0).cadence(1000) == Cadence(1, every=1)


def test_a_phase_is_online_if_it_has_environment_steps():
    assert Phase("finetune", env_steps=1).is_online and not Phase("pretrain", updates=1).is_online


def test_real_shares_make_room_for_generated_rows():
    shares = Shares(offline=0.5, online=0.5).with_generated(GeneratedShare(0.4, online=0.75))
    found = [shares.of(source) for source in Source]
    assert found == pytest.approx([0.3, 0.3, 0.1, 0.3]) and sum(found) == pytest.approx(1)
    assert shares.offline_fills and not shares.at_batch_time and not shares.whole_batches
    assert Shares(0.5, 0.5, whole_batches=True).with_generated(GeneratedShare(0.4, at_batch_time=True)) == Shares(
        0.3, 0.3, 0.0, 0.4, whole_batches=True, offline_fills=True, at_batch_time=True
    )


def test_generated_rows_can_replace_all_offline_rows():
    generated = GeneratedShare(0.2, replaces_offline=True)
    shares = Shares(offline=0.5, online=0.5).with_generated(generated)
    assert [shares.of(source) for source in Source] == pytest.approx([0, 0.8, 0, 0.2]) and shares.offline_fills
    online = Shares(online=1.0).with_generated(generated)
    assert not online.offline_fills  # there were none to replace


def test_without_a_share_real_rows_stay_as_they_are():
    shares = Shares(offline=0.5, online=0.5).with_generated(GeneratedShare(0.0, replaces_offline=True))
    assert [shares.of(source) for source in Source] == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("online", "counts"), [(1.0, [0, 9]), (0.0, [9, 0]), (0.5, [5, 4]), (0.7, [3, 6]), (0.3, [6, 3])]
)
def test_rows_are_split_by_label_and_none_is_lost(online, counts):
    expected = dict(zip((Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE), counts, strict=True))
    expected = {source: number for source, number in expected.items() if number}
    assert GeneratedShare(0.5, online=online).counts(9) == expected
