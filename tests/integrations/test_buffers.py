import pickle
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from o2o_diffusion import Augmenter, TransitionSpec
from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.augmenter import Detached
from o2o_diffusion.integrations.buffers import mixed

TINY = [
    "updates=10", "num_samples=200", "first_refresh=10", "batch_size=32", "width=8", "depth=1", "sampling.num_steps=2",
    "gate.rows=0",
]  # fmt: skip


class Batch(NamedTuple):
    """CleanRL's and SB3's fields; the order is not ours."""

    observations: Any
    actions: Any
    next_observations: Any
    dones: Any
    rewards: Any
    discounts: Any = None


class Buffer:
    """Rows of zeros; remembers what was added and asked for."""

    gamma = 0.9

    def __init__(self, batch: Any = None, **extra: Any):
        self.batch, self.extra, self.added, self.asked = batch or Batch, extra, [], []

    def add(self, obs, next_obs, action, reward, done, infos=()):
        self.added.append((obs, next_obs, action, reward, done, infos))

    def sample(self, batch_size):
        self.asked.append(batch_size)
        wide, column = torch.zeros(batch_size, 2, dtype=torch.float64), torch.zeros(batch_size, 1)
        fields = {"observations": wide, "actions": column, "next_observations": wide, "dones": column > 0}
        extra = {name: make(batch_size) for name, make in self.extra.items()}
        return self.batch(**fields, rewards=column, **extra)


@pytest.fixture(scope="module")
def augmenter() -> Augmenter:
    """Trained on rows with observations around 2, rewards around 5."""
    random = np.random.default_rng(0)
    observations = 2 + 0.1 * random.normal(size=(100, 2))
    actions, rewards = random.uniform(-1, 1, (100, 1)), 5 + 0.1 * random.normal(size=100)
    data = dict(observations=observations, actions=actions, rewards=rewards, next_observations=observations)
    return Augmenter.fit(data | {"terminations": np.arange(100) % 2}, settings=TINY)


def test_batches_keep_type_shapes_and_dtypes_and_have_the_exact_share(augmenter):
    buffer = Buffer()
    batch = augmenter.wrap(buffer, ratio=0.3).sample(50)
    assert type(batch) is Batch and batch.discounts is None and buffer.asked == [35]
    assert {name: tuple(getattr(batch, name).shape) for name in ("observations", "rewards", "dones")} == {
        "observations": (50, 2), "rewards": (50, 1), "dones": (50, 1),
    }  # fmt: skip
    assert batch.observations.dtype == torch.float64 and batch.dones.dtype == torch.bool
    assert (batch.rewards[:35] == 0).all() and (batch.rewards[35:] > 3).all()  # real rows first
    generated = augmenter.sample(3).where(terminations=torch.tensor([1.0, 0.0, 1.0]))
    assert mixed(buffer.sample(5), 2, generated).dones[:, 0].tolist() == [False, False, True, False, True]


@pytest.mark.parametrize(("ratio", "generated"), [(0.0, 0), (1.0, 50), (lambda step: min(1.0, step / 100), 20)])
def test_the_ratio_is_a_number_or_a_function_of_the_step(augmenter, ratio, generated):
    augmenter.step = 40
    assert int((augmenter.wrap(Buffer(), ratio).sample(50).rewards > 3).sum()) == generated
    augmenter.step = 0


def test_without_generated_rows_batches_are_real():
    assert (Augmenter(TransitionSpec(2, 1)).wrap(Buffer()).sample(10).rewards == 0).all()


def test_fields_are_mixed_by_name_in_dataclasses_dicts_and_arrays(augmenter):
    @dataclass
    class Mine:
        reward: Any
        obs: Any
        next_obs: Any
        terminated: Any
        action: Any
        size: int = 3

    class Arrays(Buffer):
        def sample(self, batch_size):
            wide, column = np.zeros((batch_size, 2), np.float64), np.zeros(batch_size, np.float32)
            return Mine(reward=column, obs=wide, next_obs=wide, terminated=column, action=column[:, None])

    batch = augmenter.wrap(Arrays()).sample(10)
    assert type(batch) is Mine and batch.obs.shape == (10, 2) and batch.obs.dtype == np.float64 and batch.size == 3
    assert batch.reward.shape == (10,) and (batch.reward[5:] > 3).all()

    class Dicts(Arrays):
        def sample(self, batch_size):
            return vars(super().sample(batch_size))

    assert (augmenter.wrap(Dicts()).sample(10)["reward"][5:] > 3).all()


def test_discounts_of_generated_rows_are_those_of_one_step(augmenter):
    buffer = Buffer(discounts=lambda size: torch.full((size, 1), 0.9**3))
    assert augmenter.wrap(buffer).sample(4).discounts[:, 0].tolist() == pytest.approx([0.729, 0.729, 0.9, 0.9])


def test_fields_that_generated_rows_do_not_have_are_named(augmenter):
    class Weighted(NamedTuple):
        observations: Any
        actions: Any
        next_observations: Any
        dones: Any
        rewards: Any
        weights: Any = None

    with pytest.raises(InputError, match=r"Weighted\.weights has a value for each row"):
        augmenter.wrap(Buffer(Weighted, weights=torch.ones)).sample(4)
    assert augmenter.wrap(Buffer(Weighted)).sample(4).weights is None

    class Short(NamedTuple):
        obs: Any

    class Few(Buffer):
        def sample(self, batch_size):
            return Short(torch.zeros(batch_size, 2))

    with pytest.raises(InputError, match=r"Short has no actions under any of actions, action"):
        augmenter.wrap(Few()).sample(4)
    with pytest.raises(InputError, match=r"ratio is 1.5 at step 0, expected .* 0 to 1"):
        augmenter.wrap(Buffer(), ratio=1.5)


def test_added_rows_are_observed_and_time_limits_are_no_terminations():
    augmenter, buffer = Augmenter(TransitionSpec(2, 1)), Buffer()
    wrapped = augmenter.wrap(buffer)
    observations, ones = np.ones((3, 2)), np.ones(3)
    infos = [{"TimeLimit.truncated": True}, {"TimeLimit.truncated": False}, {}]
    wrapped.add(observations, 2 * observations, np.zeros((3, 1)), ones, ones, infos)  # three environments
    wrapped.add(observations[0], observations[0], action=np.zeros(1), reward=4.0, done=torch.tensor(True), infos={})
    rows = augmenter.replay.online.all()
    assert rows.terminations.tolist() == [0, 1, 1, 1] and rows.rewards.tolist() == [1, 1, 1, 4]
    assert (rows.next_observations[:3] == 2).all() and len(buffer.added) == 2


def test_an_add_of_something_else_is_refused_with_a_hint(augmenter):
    class Other(Buffer):
        def add(self, sequence, priority):
            raise AssertionError("reached")

    with pytest.raises(InputError, match=r"Other.add\(sequence, priority\) has no observations .*augmenter.observe"):
        augmenter.wrap(Other()).add([], 1.0)


def test_the_rest_is_the_buffers_and_a_pickle_holds_the_buffer_alone(augmenter):
    wrapped = augmenter.wrap(Buffer())
    assert wrapped.gamma == 0.9
    with pytest.raises(AttributeError):
        _ = wrapped.nothing
    assert type(pickle.loads(pickle.dumps(wrapped))) is Buffer
    detached = pickle.loads(pickle.dumps(augmenter))
    assert type(detached) is Detached
    with pytest.raises(InputError, match="augmenters are not pickled"):
        detached.sample(3)
