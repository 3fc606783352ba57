from collections.abc import Callable

import pytest
import torch

pytest.importorskip("torchrl")

from marked import MARK, MarkedRows
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.transforms import Compose, ExcludeTransform
from torchrl.modules import ValueOperator
from torchrl.objectives import DDPGLoss

from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.augmenter import Augmenter
from o2o_diffusion.integrations.torchrl import augment_transform


def rollout(size: int, seed: int = 0) -> TensorDict:
    """Transitions in TorchRL's format; the last ends the task."""
    generator = torch.Generator().manual_seed(seed)
    flags = {key: torch.zeros(size, 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
    last = torch.arange(size)[:, None] == size - 1
    return TensorDict(
        {
            "observation": torch.rand(size, 3, generator=generator),
            "action": 2 * torch.rand(size, 1, generator=generator) - 1,
            **flags,
            "next": {
                "observation": torch.rand(size, 3, generator=generator),
                "reward": torch.rand(size, 1, generator=generator),
                **flags,
                "terminated": last,
                "done": last,
            },
            "collector": {"traj_ids": torch.zeros(size, dtype=torch.int64)},
        },
        batch_size=[size],
    )


def augmenter(**options) -> Augmenter:
    """Fitted on a handful of rows, with the marked generator."""
    batch = rollout(5)
    data = {
        "observations": batch["observation"],
        "actions": batch["action"],
        "rewards": batch["next", "reward"],
        "next_observations": batch["next", "observation"],
        "terminations": batch["next", "terminated"],
    }
    return Augmenter.fit(data, generator=MarkedRows(), **options)


def buffer(ratio: float | Callable[[int], float], batch_size: int = 10, storage=LazyTensorStorage, **options):
    """A replay buffer of 50 real transitions, none of which were observed."""
    replay_buffer = TensorDictReplayBuffer(storage=storage(100), batch_size=batch_size)
    replay_buffer.extend(rollout(50))
    replay_buffer.append_transform(augment_transform(augmenter(**options), ratio))
    return replay_buffer


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 0), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_the_share_of_generated_rows_is_exact(ratio, expected):
    replay_buffer = buffer(ratio, 16)
    for _ in range(5):
        batch = replay_buffer.sample()
        marked = (batch["observation"] == MARK).all(1)
        assert marked.sum() == expected and torch.equal(marked, batch["generated"])


def test_the_share_may_depend_on_the_step():
    replay_buffer = buffer(lambda step: min(1.0, step / 100))
    assert replay_buffer.sample()["generated"].sum() == 0
    replay_buffer.transform[0].augmenter.maybe_refresh(30)
    assert replay_buffer.sample()["generated"].sum() == 3


def test_generated_rows_are_whole_transitions():
    batch = buffer(1.0, 40).sample()
    ends = batch["next", "terminated"]
    assert 0 < ends.sum() < 40
    assert torch.equal(ends, batch["next", "done"]) and torch.equal(batch["next", "reward"], ends.float() - 2)
    assert (batch["next", "observation"] == MARK + 1).all() and (batch["action"] == 0.5).all()
    for key in ("done", "terminated", "truncated", ("next", "truncated")):
        assert not batch[key].any()


def test_actions_are_in_the_users_bounds():
    assert (buffer(1.0, action_low=-2, action_high=2).sample()["action"] == 1.0).all()


def test_batches_look_as_without_the_transform():
    replay_buffer = buffer(0.5)
    mixed = replay_buffer.sample()
    plain = TensorDictReplayBuffer(storage=replay_buffer.storage, batch_size=10).sample()
    assert set(mixed.keys(True, True)) - set(plain.keys(True, True)) == {"generated"}
    for key in plain.keys(True, True):
        assert mixed[key].shape == plain[key].shape and mixed[key].dtype == plain[key].dtype, key


@pytest.mark.parametrize("storage", [LazyTensorStorage, LazyMemmapStorage])
def test_the_storage_is_never_written(storage):
    replay_buffer = buffer(0.5, storage=storage)
    before = replay_buffer.storage[:].clone()
    for _ in range(5):
        batch = replay_buffer.sample()
        batch["observation"][batch["generated"]] = 0.0
    assert replay_buffer[:]["generated"].sum() == 25 and replay_buffer[3]["observation"].max() < MARK
    assert (replay_buffer.storage[:] == before).all()


def test_extending_is_observed():
    replay_buffer = buffer(0.5)
    plugin = replay_buffer.transform[0].augmenter
    assert len(plugin.replay.online) == 0
    new = rollout(12, seed=1)
    replay_buffer.extend(new)
    replay_buffer.add(new[0])
    replay_buffer.extend(new[:8].reshape(2, 4).reshape(-1))
    online = plugin.replay.online
    assert len(online) == 21 and len(replay_buffer) == 71
    assert torch.equal(online.fields["observations"][:12], new["observation"])
    assert torch.equal(online.fields["terminations"][:12], new["next", "terminated"].float().squeeze(1))
    assert plugin.maybe_refresh(21) and plugin.generator.seen == 21


def test_batches_are_real_until_something_was_generated():
    spec = augmenter().spec
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(100),
        batch_size=8,
        transform=augment_transform(Augmenter(spec, generator=MarkedRows()), 0.5),
    )
    replay_buffer.extend(rollout(20))
    assert not replay_buffer.sample()["generated"].any()
    assert replay_buffer.transform[0].augmenter.maybe_refresh(20)
    assert replay_buffer.sample()["generated"].sum() == 4


def test_what_generated_rows_cannot_have_is_named():
    extended = rollout(20)
    extended["loc"] = extended["next", "step_count"] = torch.zeros(20, 1)
    replay_buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100), batch_size=8)
    replay_buffer.extend(extended)
    replay_buffer.append_transform(augment_transform(augmenter(), 0.5))
    with pytest.raises(InputError, match=r"have no 'loc', \('next', 'step_count'\); put torchrl's Exclude"):
        replay_buffer.sample()
    exclude = ExcludeTransform("loc", ("next", "step_count"))
    mixing = Compose(exclude, augment_transform(augmenter(), 0.5))
    replay_buffer = TensorDictReplayBuffer(storage=replay_buffer.storage, batch_size=8, transform=mixing)
    assert replay_buffer.sample()["generated"].sum() == 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"ratio is 1\.5"):
        augment_transform(augmenter(), 1.5)
    replay_buffer = buffer(0.5)
    with pytest.raises(InputError, match=r"has no \('next', 'terminated'\)"):
        replay_buffer.extend(rollout(4).exclude(("next", "terminated")))
    with pytest.raises(InputError, match="holds sequences"):
        replay_buffer.transform(rollout(4).reshape(2, 2))
    narrow = rollout(4)
    narrow["observation"] = torch.zeros(4, 2)
    with pytest.raises(InputError, match="'observation' has width 2; the augmenter's has 3"):
        replay_buffer.transform(narrow)
    with pytest.raises(InputError, match="expected between"):
        replay_buffer.extend(rollout(4).set("action", torch.full((4, 1), 3.0)))


def test_ddpg_learns_from_the_mixture():
    torch.manual_seed(0)
    actor = TensorDictModule(nn.Sequential(nn.Linear(3, 1), nn.Tanh()), in_keys=["observation"], out_keys=["action"])

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))

        def forward(self, observation, action):
            return self.body(torch.cat([observation, action], -1))

    critic = ValueOperator(Critic(), in_keys=["observation", "action"])
    loss = DDPGLoss(actor, critic)
    loss.make_value_estimator(gamma=0.9)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    replay_buffer, before = buffer(0.5, 32), actor.module[0].weight.clone()
    for _ in range(20):
        losses = loss(replay_buffer.sample())
        total = losses["loss_actor"] + losses["loss_value"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert total.isfinite()
    assert not torch.equal(loss.actor_network_params["module", "0", "weight"], before)
