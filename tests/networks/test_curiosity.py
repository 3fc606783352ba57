import torch

from o2o_diffusion.networks.curiosity import Curiosity
from o2o_diffusion.optimization import Optimizer


def transitions(size: int, seed: int, sign: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States of a plane that each action moves by half of itself, in the other direction where `sign` is -1."""
    generator = torch.Generator().manual_seed(seed)
    observations, actions = (2 * torch.rand(size, 2, generator=generator) - 1 for _ in range(2))
    return observations, actions, observations + sign * 0.5 * actions


def trained(updates: int) -> Curiosity:
    torch.manual_seed(0)
    curiosity = Curiosity(2, 2, width=32)
    optimizer = Optimizer(curiosity.parameters(), 3e-3)
    for seed in range(updates):
        optimizer.step(curiosity.loss(*transitions(64, seed)))
    return curiosity


def test_seen_transitions_become_dull_and_others_stay_interesting():
    before, after = trained(0), trained(300)
    seen, novel = transitions(500, 1_000), transitions(500, 1_000, sign=-1.0)
    with torch.no_grad():
        assert after(*seen).mean() < 0.1 * before(*seen).mean()
        assert after(*novel).mean() > 50 * after(*seen).mean()
        assert after(*novel).mean() > before(*novel).mean()


def test_score_is_the_mean_squared_error_of_the_forward_model():
    curiosity = Curiosity(3, 2, width=8, depth=1)
    observations, actions, following = torch.randn(5, 3), torch.randn(5, 2), torch.randn(5, 3)
    h, next_h = curiosity.encode(observations), curiosity.encode(following)
    predicted = h + curiosity.forward_model[0].layers(torch.cat([h, actions], 1))
    scores = curiosity(observations, actions, following)
    assert scores.shape == (5,) and h.shape == (5, 8)
    torch.testing.assert_close(scores, (next_h - predicted).square().sum(1) / 8)
    told = curiosity.inverse_model(torch.cat([h, next_h], 1))
    expected = scores.mean() + (told - actions).square().mean()
    torch.testing.assert_close(curiosity.loss(observations, actions, following), expected)


def test_the_forward_target_is_a_constant():
    curiosity = Curiosity(3, 2, width=8)
    h, next_h = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    error = curiosity.forward_error(h, torch.randn(4, 2), next_h).mean()
    towards, target = torch.autograd.grad(error, [h, next_h], allow_unused=True)
    assert towards.abs().min() > 0 and target is None


def test_observations_are_standardized_inside():
    curiosity, raw = Curiosity(2, 2, width=8), transitions(200, 0)
    curiosity.normalizer.fit(100 + 10 * raw[0])
    shifted = curiosity(100 + 10 * raw[0], raw[1], 100 + 10 * raw[2])
    curiosity.normalizer.fit(raw[0])
    torch.testing.assert_close(shifted, curiosity(*raw), rtol=1e-3, atol=1e-5)
