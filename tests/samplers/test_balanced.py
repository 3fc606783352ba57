import pytest
import torch
from builders import SPEC, LinearPolicy, make_replay, raw_batch

from o2o_diffusion.networks.ratio import DensityRatio, ratio_loss
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.balanced import Balanced
from o2o_diffusion.schedule import Shares
from o2o_diffusion.types import Source

HALVES = Shares(offline=0.5, online=0.5)


def balanced(**settings):
    small = {"hidden": (16, 16), "refresh_interval": 10, "ramp": 0}
    return Balanced(Balanced.Config(**(small | settings)), SPEC, seed=0)


def test_the_ratio_of_two_gaussians_is_recovered():
    # one-dimensional actions from N(0, 1) offline and N(0.7, 1) online: w(a) = exp(0.7 a - 0.245)
    torch.manual_seed(0)
    ratio = DensityRatio(1, 1, (32, 32))
    optimizer, g = Optimizer(ratio.parameters(), 3e-3), torch.Generator().manual_seed(0)
    states = torch.zeros(1024, 1)
    for step in range(500):
        optimizer.learning_rate = 3e-3 * (1 - step / 500)
        offline, online = torch.randn(2, 1024, 1, generator=g)
        optimizer.step(ratio_loss(ratio(states, offline), ratio(states, online + 0.7)))
    points = torch.tensor([[-0.5], [0.35], [1.2]])
    expected = (0.7 * points[:, 0] - 0.245).exp()
    torch.testing.assert_close(ratio(torch.zeros(3, 1), points), expected, rtol=0.1, atol=0)


def test_the_loss_is_least_at_the_densities_ratio():
    # three actions with known probabilities: the gradient with respect to w vanishes at w = online / offline
    offline, online = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    w = (online / offline).requires_grad_()
    value = 3 * ratio_loss(offline * 0 + w, online * 0 + w)  # the mean of equal counts
    weighted = -(offline * (2 / (w + 1)).log()).sum() - (online * (2 * w / (w + 1)).log()).sum()
    (gradient,) = torch.autograd.grad(weighted, w)
    torch.testing.assert_close(gradient, torch.zeros(3).double(), atol=1e-12, rtol=0)
    plain = -(2 / (w + 1)).log().sum() - (2 * w / (w + 1)).log().sum()
    torch.testing.assert_close(value, plain)


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_first_online_rows_have_their_share_of_the_mass(share):
    sampler = balanced(initial_share=share, initial_rows=100)
    replay = Replay(SPEC, {Source.OFFLINE: 700, Source.ONLINE: 100})
    replay.offline.append(raw_batch(700))
    replay.online.append(raw_batch(100))
    draw = sampler.sample(replay, HALVES, 20_000)
    assert abs((draw.sources == Source.ONLINE).float().mean() - share) < 0.015
    sizes = [len(replay.pools[source]) for source in Source]
    sampler.refresh(sizes)
    table = sampler.tensors["table"]
    assert ((table[800] - table[700]) / table[800]).item() == pytest.approx(share)


def test_offline_rows_like_the_online_ones_are_drawn_more_often():
    sampler, replay = balanced(temperature=1.0, learning_rate=1e-2), make_replay(offline=200, online=200)
    replay.online.fields["actions"].copy_(0.3 + 0.1 * raw_batch(200).actions)
    near = (replay.offline.all().actions - 0.3).abs().amax(1) < 0.3
    for _ in range(150):
        sampler.sample(replay, HALVES, 64)
        metrics = sampler.update(replay, LinearPolicy())
    draw = sampler.sample(replay, HALVES, 4_000)
    offline = draw.rows[draw.sources == Source.OFFLINE]
    drawn = near[offline].float().mean()
    assert metrics["ratio_loss"] < -0.1 and 0.02 < near.float().mean() < 0.5 and drawn > 2 * near.float().mean()
    assert (draw.weights == 1).all()


def test_priorities_are_sharpened_ratios_over_their_offline_mean():
    sampler, replay = balanced(temperature=2.0, learning_rate=1e-9), make_replay()
    draw = sampler.sample(replay, HALVES, 64)
    state = sampler.rng.state_dict()
    sampler.update(replay, LinearPolicy())
    sampler.rng.load_state_dict(state)
    offline, _ = sampler.rows_of(replay, Source.OFFLINE), sampler.rows_of(replay, Source.ONLINE)
    batch = replay.gather(draw)
    expected = sampler.ratio(batch.observations, batch.actions).sqrt() / sampler.ratio(*offline).sqrt().mean()
    found = sampler.tensors["priorities"][replay.starts[draw.pools] + draw.rows]
    torch.testing.assert_close(found, expected.detach().clamp(1e-3, 1e3), atol=1e-4, rtol=1e-4)


def test_without_online_rows_offline_rows_are_drawn_uniformly():
    sampler, replay = balanced(), make_replay(offline=50, online=0)
    for _ in range(20):
        draw = sampler.sample(replay, Shares(offline=1.0), 500)
        assert sampler.update(replay, LinearPolicy()) == {}
    assert torch.bincount(draw.rows, minlength=50).min() > 0 and not sampler.is_fitted
