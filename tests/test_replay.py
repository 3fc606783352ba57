import numpy as np
import pytest
import torch
from builders import SPEC, make_replay, raw_batch

from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.types import Episode, RewardTransform, Source, Transitions


def episode(length: int, value: float = 0.0, terminated: bool = False) -> Episode:
    observations = np.full((length + 1, 3), value, np.float32)
    return Episode(observations, np.zeros((length, 2), np.float32), np.ones(length, np.float32), terminated)


def replay(offline: int = 0, online: int = 4, generated: int = 0) -> Replay:
    capacities = {Source.OFFLINE: offline, Source.ONLINE: online, Source.GENERATED_ONLINE: generated}
    return Replay(SPEC, capacities, discount=0.5)


def row(value: float) -> Transitions:
    return episode(1, value).transitions()


def numbered(number: int, length: int) -> Episode:
    """An episode whose observation at step t is 100 `number` + t."""
    observations = np.repeat(100.0 * number + np.arange(length + 1)[:, None], 3, 1).astype(np.float32)
    return Episode(observations, np.zeros((length, 2), np.float32), np.ones(length, np.float32), False)


def check_windows(store: Replay, source: Source, length: int = 5) -> None:
    """Compare the window at every row of a pool with the steps of its episode that the pool holds."""
    pool = store.pools[source]
    held = pool.all().observations[:, 0].tolist()
    rows = torch.arange(len(pool))
    draw = Draw.create(rows, torch.full_like(rows, int(source)), weights=0.5 * torch.ones(len(pool)))
    windows = store.gather(draw, length)
    assert windows.observations.shape == (len(pool), length, 3) and windows.rewards.shape == (len(pool), length)
    assert (windows.sources == source).all() and (windows.regularization == 1).all()
    for first, observations, weights, where in zip(
        held, windows.observations[..., 0].tolist(), windows.weights.tolist(), windows.rows.tolist(), strict=True
    ):
        steps = [first + k for k in range(length) if all(first + j in held for j in range(k + 1))]
        assert observations == steps + (length - len(steps)) * steps[-1:]
        assert weights == [0.5] * len(steps) + [0.0] * (length - len(steps))
        assert [held[k] for k in where] == observations


def test_the_online_ring_reaches_its_capacity_and_then_forgets_the_oldest():
    store = replay(online=4)
    sizes = []
    for value in range(6):
        store.online.append(row(float(value)))
        sizes.append(len(store.online))
    assert sizes == [1, 2, 3, 4, 4, 4]
    assert sorted(store.online.all().observations[:, 0].tolist()) == [2.0, 3.0, 4.0, 5.0]


def test_online_rows_never_touch_offline_rows():
    store = replay(offline=5, online=2)
    store.load([episode(2, 7.0), episode(3, 8.0)])
    before = store.offline.all().observations.clone()
    for value in range(9):
        store.online.append(row(float(value)))
    assert torch.equal(store.offline.all().observations, before)
    assert store.offline.episodes.tolist() == [0, 0, 1, 1, 1] and store.offline.steps.tolist() == [0, 1, 0, 1, 2]


def test_a_dataset_enters_with_its_returns_and_an_online_episode_gets_them_when_it_ends():
    store = replay(offline=2, online=4)
    store.load([episode(2)])
    assert store.offline.all().returns.tolist() == [1.5, 1.0]
    rows = [store.online.append(row(0.0)) for _ in range(2)]
    assert (store.online.all().returns == float("-inf")).all()
    store.end_episode(episode(2), torch.cat(rows))
    assert store.online.all().returns.tolist() == [1.5, 1.0]


def test_a_transition_is_the_same_to_the_learner_whether_it_came_from_the_data_or_from_the_environment():
    store = replay(offline=2, online=2)
    store.load([episode(2)])
    steps = episode(2).transitions()
    rows = torch.cat([store.online.append(steps[k : k + 1]) for k in range(2)])
    store.end_episode(episode(2), rows)
    pools = torch.tensor([Source.OFFLINE, Source.ONLINE])
    for step in range(2):
        batch = store.gather(Draw.create(torch.tensor([step, step]), pools))
        scaled = store.scaled(batch)
        names = ("observations", "actions", "rewards", "next_observations", "returns", "discounts")
        for name in (*names, "weights", "regularization"):
            offline, online = getattr(scaled, name)
            assert torch.equal(offline, online), name


def test_rows_know_their_next_action_within_the_episode():
    store, whole = replay(offline=4, online=2), episode(2)
    store.load([whole, whole])
    unfinished = whole.transitions().where(next_actions=torch.full((2, SPEC.action_dim), torch.nan))
    rows = store.online.append(unfinished)
    assert store.online.all().next_actions.isnan().all()
    store.end_episode(whole, rows)
    found = torch.cat([store.offline.all().next_actions, store.online.all().next_actions])
    assert found[1::2].isnan().all() and torch.equal(found[::2], torch.from_numpy(whole.actions[1:]).expand(3, -1))


def test_an_episode_longer_than_the_ring_keeps_the_returns_of_its_last_rows():
    store = replay(online=2)
    rows = torch.cat([store.online.append(row(0.0)) for _ in range(3)])
    store.end_episode(episode(3), rows)
    assert store.online.fields["returns"][rows[-2:]].tolist() == [1.5, 1.0]


def test_generated_rows_are_replaced_not_added():
    store = replay(generated=3)
    for value in (1.0, 2.0):
        store.replace_generated({Source.GENERATED_ONLINE: episode(3, value).transitions()})
    pool = store.pools[Source.GENERATED_ONLINE]
    assert len(pool) == 3 and (pool.all().observations == 2.0).all()
    assert (pool.all().sources == Source.GENERATED_ONLINE).all()


def test_gather_reads_each_row_from_its_pool():
    store = replay(offline=2, online=2)
    store.load([episode(2, 5.0)])
    store.online.append(row(9.0))
    batch = store.gather(Draw.create(torch.tensor([1, 0]), torch.tensor([Source.OFFLINE, Source.ONLINE])))
    assert batch.observations[:, 0].tolist() == [5.0, 9.0]
    assert batch.sources.tolist() == [Source.OFFLINE, Source.ONLINE] and batch.rows.tolist() == [1, 0]


def test_gather_keeps_what_a_draw_says_of_its_rows():
    store, ones = make_replay(offline=4, online=4), torch.ones(3)
    rows, pools = torch.tensor([3, 0, 2]), torch.tensor([0, 1, 1])
    draw = Draw.create(rows, pools, sources=pools + 2, weights=0.5 * ones, regularization=0 * ones)
    batch = store.gather(draw)
    assert torch.equal(batch.observations[:1], store.offline.all().observations[3:])
    assert torch.equal(batch.observations[1:], store.online.all().observations[[0, 2]])
    assert batch.is_generated.all() and batch.sources.tolist() == [2, 3, 3] and batch.rows.tolist() == [3, 0, 2]
    assert batch.weights.eq(0.5).all() and batch.regularization.eq(0).all()
    assert torch.equal(store.gather(draw[1:]).observations, batch.observations[1:]) and len(draw[1:]) == 2


def test_union_counts_offline_rows_before_online_ones():
    store = make_replay(offline=3, online=2, generated_online=4)
    assert (store.num_real, store.num_generated) == (5, 4)
    draw = store.union(torch.arange(store.num_real))
    assert draw.rows.tolist() == [0, 1, 2, 0, 1] and draw.pools.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(draw.sources, draw.pools) and (draw.weights == 1).all() and (draw.regularization == 1).all()
    both = torch.cat([store.offline.all().observations, store.online.all().observations])
    assert torch.equal(store.gather(draw).observations, both)
    only = make_replay(offline=0, online=2).union(torch.tensor([1, 0]))
    assert only.rows.tolist() == [1, 0] and (only.pools == Source.ONLINE).all()


def test_scaled_transforms_rewards_once_and_sets_discounts():
    store = make_replay(transform=RewardTransform(scale=10.0, bias=-1.0), discount=0.9)
    raw = store.gather(store.union(torch.arange(400)))
    rewards = raw.rewards.clone()
    scaled = store.scaled(raw)
    assert torch.equal(raw.rewards, rewards) and raw.discounts.isnan().all()
    torch.testing.assert_close(scaled.rewards, 10 * rewards - 1)
    assert 0 < scaled.terminations.mean() < 1
    torch.testing.assert_close(scaled.discounts, 0.9 * (1 - scaled.terminations))
    assert torch.equal(store.scaled(raw).rewards, scaled.rewards)
    for name in ("observations", "actions", "next_observations", "terminations", "returns", "weights", "sources"):
        assert torch.equal(getattr(scaled, name), getattr(raw, name)), name
    assert torch.equal(torch.cat([store.offline.all().rewards, store.online.all().rewards]), rewards)


def test_an_online_dataset_enters_with_its_returns():
    store = replay(offline=2, online=5)
    store.load([episode(2), episode(3)], Source.ONLINE)
    assert len(store.offline) == 0 and store.online.all().returns.tolist() == [1.5, 1.0, 1.75, 1.5, 1.0]
    assert store.online.episodes.tolist() == [0, 0, 1, 1, 1] and store.online.steps.tolist() == [0, 1, 0, 1, 2]
    assert (store.online.all().sources == Source.ONLINE).all()


@pytest.mark.parametrize("source", [Source.OFFLINE, Source.ONLINE])
def test_windows_never_cross_an_episode_and_repeat_its_last_row_with_weight_0(source):
    store = Replay(SPEC, {Source.OFFLINE: 20, Source.ONLINE: 20})
    store.load([numbered(number, length) for number, length in enumerate((3, 7, 1, 5))], source)
    assert len(store.pools[source]) == 16  # the pool is not full: its last window must not reach beyond
    check_windows(store, source)


@pytest.mark.parametrize("lengths", [(4, 4, 5), (13,), (3, 10), (10,), (8, 12), (10, 3)])
def test_windows_respect_the_wrap_around_of_the_online_ring(lengths):
    store = Replay(SPEC, {Source.OFFLINE: 3, Source.ONLINE: 10})
    store.load([numbered(9, 3)])
    for number, length in enumerate(lengths):
        steps = numbered(number, length).transitions()
        for step in range(length):
            store.online.append(steps[step : step + 1], episode=number, first_step=step)
            check_windows(store, Source.ONLINE)
    check_windows(store, Source.OFFLINE)


def test_rows_without_an_episode_are_windows_of_their_own():
    store = make_replay(offline=6, online=6, generated_online=6)
    for source in (Source.OFFLINE, Source.ONLINE, Source.GENERATED_ONLINE):
        rows = torch.arange(6)
        windows = store.gather(Draw.create(rows, torch.full_like(rows, int(source))), 5)
        assert torch.equal(windows.rows, rows[:, None].expand(6, 5))
        assert windows.weights.tolist() == 6 * [[1.0, 0.0, 0.0, 0.0, 0.0]]
        assert torch.equal(windows.observations, store.pools[source].all().observations[:, None].expand(6, 5, 3))


def test_a_draw_of_windows_mixes_pools_and_begins_with_its_rows():
    store = Replay(SPEC, {Source.OFFLINE: 8, Source.ONLINE: 8, Source.GENERATED_ONLINE: 2}, discount=0.9)
    store.load([numbered(0, 8)])
    store.load([numbered(1, 4), numbered(2, 4)], Source.ONLINE)
    store.replace_generated({Source.GENERATED_ONLINE: raw_batch(2)})
    draw = Draw.create(torch.tensor([5, 2, 1]), torch.tensor([0, 1, 3]), regularization=torch.tensor([1.0, 0.0, 1.0]))
    windows, rows = store.gather(draw, 5), store.gather(draw)
    assert windows.observations[:2, :, 0].tolist() == [[5, 6, 7, 7, 7], [102, 103, 103, 103, 103]]
    assert windows.weights.sum(1).tolist() == [3, 2, 1] and windows.regularization[:, 4].tolist() == [1, 0, 1]
    for name, field in vars(rows).items():
        torch.testing.assert_close(getattr(windows, name)[:, 0], field, equal_nan=True)
    torch.testing.assert_close(store.scaled(windows).discounts, 0.9 * (1 - windows.terminations))


def test_a_pools_rows_are_read_without_a_copy():
    store = make_replay(offline=3, online=2)
    assert store.offline.all().rewards.data_ptr() == store.memory["rewards"].data_ptr()
    assert store.device == torch.device("cpu")


def test_state_restores_everything_but_the_dataset():
    store, other = replay(offline=2, online=3), replay(offline=2, online=3)
    store.load([episode(2, 5.0)])
    for value in range(4):
        store.online.append(row(float(value)))
    other.load_state_dict(store.state_dict())
    assert torch.equal(other.online.all().observations, store.online.all().observations)
    assert other.online.position == store.online.position == 1
    with pytest.raises(ValueError, match="do not fit"):
        replay(offline=2, online=2).load_state_dict(store.state_dict())


def test_returns_are_of_transformed_rewards_with_the_discount_and_the_failure_rule():
    options = {"transform": RewardTransform(10.0, -1.0), "discount": 0.5, "failure_reward": -1.0}
    store = Replay(SPEC, {Source.OFFLINE: 2, Source.ONLINE: 2}, **options)
    failed = Episode(np.zeros((3, 3), np.float32), np.zeros((2, 2), np.float32), np.full(2, -1, np.float32), False)
    store.load([episode(2)])
    store.end_episode(failed, store.online.append(failed.transitions()))
    assert store.offline.all().returns.tolist() == [9 + 0.5 * 9, 9.0]
    assert store.online.all().returns.tolist() == [-22.0, -22.0]  # -11 at each step, for ever


def test_a_label_without_new_rows_loses_its_old_ones():
    store = make_replay(generated_offline=3, generated_online=3)
    store.replace_generated({Source.GENERATED_ONLINE: raw_batch(2)})
    assert len(store.pools[Source.GENERATED_OFFLINE]) == 0 and store.num_generated == 2


def test_windows_end_at_the_rows_that_were_restored():
    saved, store = (Replay(SPEC, {Source.ONLINE: 10}) for _ in range(2))
    saved.load([numbered(0, 3)], Source.ONLINE)
    store.load([numbered(0, 8)], Source.ONLINE)
    store.load_state_dict(saved.state_dict())
    check_windows(store, Source.ONLINE)


def test_a_tenth_of_the_pieces_is_held_out_whatever_else_is_stored():
    store = replay(offline=4_000, online=250)
    store.load([numbered(number, 1_000) for number in range(3)])
    store.load([numbered(number, 25) for number in range(10)], Source.ONLINE)
    held_out = store.offline.all().observations[store.offline.held_out, 0]
    assert held_out.tolist() == [*range(500, 600), *range(500, 600), *range(500, 600)]  # observations are 100 n + t
    assert store.offline.held_out.reshape(3, 10, 100).nonzero()[::100].tolist() == [[0, 5, 0], [1, 4, 0], [2, 3, 0]]
    assert store.online.episodes[: len(store.online)][store.online.held_out].unique().tolist() == [5]
    before = store.offline.held_out
    store.load([numbered(number, 10) for number in range(100)])
    assert torch.equal(store.offline.held_out[:3_000], before)


def test_rows_without_an_episode_are_held_out_by_their_place():
    store = replay(online=800)
    for start in range(0, 800, 200):
        store.online.append(raw_batch(200, SPEC, seed=start))
    assert store.online.held_out.nonzero().flatten().tolist() == list(range(500, 600))
    store.online.append(raw_batch(90, SPEC))  # overwrites the oldest rows
    assert store.online.held_out.nonzero().flatten().tolist() == list(range(500, 600))


def test_the_two_parts_of_a_replay_are_its_real_rows():
    store = replay(offline=1_000, online=700, generated=5)
    store.load([numbered(0, 1_000)])
    store.online.append(raw_batch(700, SPEC))
    store.pools[Source.GENERATED_ONLINE].append(raw_batch(5, SPEC))
    training, held_out = (store.part(held_out=choice) for choice in (False, True))
    assert (len(training.offline), len(held_out.offline)) == (900, 100) and training.num_generated == 0
    assert (len(training.online), len(held_out.online)) == (600, 100) and training.discount == store.discount
    assert held_out.offline.steps.tolist() == list(range(500, 600))
    assert torch.equal(held_out.offline.all().returns, store.offline.all().returns[500:600])
    across = training.gather(Draw.create(torch.tensor([499]), torch.tensor([0])), length=3)
    assert across.weights.tolist() == [[1, 0, 0]]  # a window never leaps over held-out steps
