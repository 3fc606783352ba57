import numpy as np
import pytest
import torch

from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Episode, Source, Transitions, TransitionSpec

SPEC = TransitionSpec(3, 2)


def episode(length: int, value: float = 0.0, terminated: bool = False) -> Episode:
    observations = np.full((length + 1, 3), value, np.float32)
    return Episode(observations, np.zeros((length, 2), np.float32), np.ones(length, np.float32), terminated)


def replay(offline: int = 0, online: int = 4, generated: int = 0) -> Replay:
    capacities = {Source.OFFLINE: offline, Source.ONLINE: online, Source.GENERATED_ONLINE: generated}
    return Replay(SPEC, capacities, discount=0.5)


def row(value: float) -> Transitions:
    return episode(1, value).transitions()


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
    before = store.offline.all()
    for value in range(9):
        store.online.append(row(float(value)))
    assert torch.equal(store.offline.all().observations, before.observations)
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
        batch = store.gather(torch.tensor([step, step]), pools)
        transformed = store.transform(batch.rewards)
        for name in (
            "observations",
            "actions",
            "next_observations",
            "returns",
            "continues",
            "weights",
            "regularization",
        ):
            offline, online = getattr(batch, name)
            assert torch.equal(offline, online), name
        assert transformed[0] == transformed[1]


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
    batch = store.gather(torch.tensor([1, 0]), torch.tensor([Source.OFFLINE, Source.ONLINE]))
    assert batch.observations[:, 0].tolist() == [5.0, 9.0]
    assert batch.sources.tolist() == [Source.OFFLINE, Source.ONLINE] and batch.rows.tolist() == [1, 0]


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
