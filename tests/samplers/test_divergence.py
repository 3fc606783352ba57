import torch
from builders import SPEC, LinearPolicy, make_replay, raw_batch

from o2o_diffusion.samplers.divergence import Divergence
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import Source

HALVES = Shares(offline=0.5, online=0.5)


def fitted(replay, updates=150, **settings):
    """A sampler whose clone was fitted before there were online rows."""
    small = {"hidden": (16, 16), "learning_rate": 1e-2, "ramp": 0, "refresh_interval": 10}
    sampler, offline = Divergence(Divergence.Config(**(small | settings)), SPEC, seed=0), make_replay(online=0)
    offline.offline.fields["actions"].copy_(replay.offline.all().actions)
    for _ in range(updates):
        sampler.sample(offline, Shares(offline=1.0), 16)
        metrics = sampler.update(offline, LinearPolicy())
    return sampler, metrics


def behaved():
    """A replay whose offline actions are a function of the observation, but for a fifth of the rows."""
    replay = make_replay()
    rows = replay.offline.all()
    rows.actions[40:].copy_(0.8 * rows.observations[40:, :2].sign())
    rows.actions[:40].copy_(-0.8 * rows.observations[:40, :2].sign())
    return replay


def test_the_clone_is_fitted_before_there_are_online_rows_and_frozen_after():
    replay = behaved()
    sampler, metrics = fitted(replay)
    before = [parameter.clone() for parameter in sampler.clone.parameters()]
    assert metrics["clone_loss"] < 0.7 and 0.3 < sampler.unit / metrics["clone_loss"] < 3
    sampler.sample(replay, HALVES, 16)
    assert set(sampler.update(replay, LinearPolicy())) == {"distance"}
    assert all(map(torch.equal, before, sampler.clone.parameters()))


def test_priorities_fall_with_the_distance_offline_and_grow_with_it_online():
    sampler, _ = fitted(behaved(), alpha=0.5)
    b = raw_batch(64)
    distance = ((b.actions - sampler.clone(b.observations)) ** 2).mean(1) / sampler.unit
    for source, expected in ((Source.OFFLINE, (-distance).exp()), (Source.ONLINE, (distance + 1e-3).sqrt())):
        rows = b.where(sources=torch.full((64,), int(source)))
        found, _ = sampler.measure(LinearPolicy(), rows, make_replay())
        torch.testing.assert_close(found, expected.clamp(0.1, 10.0))
        assert found.unique().numel() > 20


def test_offline_rows_unlike_the_behavior_are_drawn_less():
    replay = behaved()
    sampler, _ = fitted(replay)
    for _ in range(60):
        sampler.sample(replay, HALVES, 64)
        sampler.update(replay, LinearPolicy())
    draw = sampler.sample(replay, HALVES, 4_000)
    offline = draw.rows[draw.sources == Source.OFFLINE]
    assert len(offline) == 2_000 and (offline < 40).float().mean() < 0.12  # a fifth of the rows
    assert draw.weights[draw.sources == Source.OFFLINE].unique().numel() > 5
