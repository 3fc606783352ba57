import torch

from o2o_diffusion.networks.novelty import Novelty, RunningMoments
from o2o_diffusion.optimization import Optimizer


def test_moments_are_those_of_all_batches_together():
    moments, rows = RunningMoments(3), 2 + 0.5 * torch.randn(4, 100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moments.std, torch.ones(3))
    for batch in rows:
        moments.measure(batch)
    torch.testing.assert_close(moments.mean, rows.flatten(0, 1).mean(0))
    torch.testing.assert_close(moments.std, rows.flatten(0, 1).std(0, correction=0))


def test_errors_are_clipped_standardized_differences_of_features():
    novelty, rows = Novelty(3, (8, 4)), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    novelty.moments.measure(10 * rows + 3)
    x = ((10 * rows + 3 - novelty.moments.mean) / novelty.moments.std).clamp(-5, 5)
    expected = ((novelty.predictor(x) - novelty.features(x)) ** 2).mean(1)
    torch.testing.assert_close(novelty.error(10 * rows + 3), expected)
    assert torch.equal(novelty.error(1e6 * torch.ones(1, 3)), novelty.error(1e7 * torch.ones(1, 3)))
    novelty.predictor.load_state_dict(novelty.features.state_dict())
    assert not novelty.error(rows).any()


def test_known_observations_lose_their_bonus():
    novelty, rows = Novelty(3, (32, 16)), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    optimizer = Optimizer(novelty.predictor.parameters(), 3e-3)
    first = novelty.bonus(rows)
    for _ in range(150):
        optimizer.step(novelty.error(rows).mean())
    torch.testing.assert_close(first.std(correction=0), torch.tensor(1.0))
    assert novelty.error(rows).mean() < 0.3 * novelty.error(rows + 3).mean()
