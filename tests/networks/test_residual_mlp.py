import torch

from o2o_diffusion.networks.residual_mlp import FourierFeatures, LabelEmbedding, ResidualMLP, ScoreEmbedding


def test_the_papers_network_has_the_papers_size():
    network = ResidualMLP(26, width=1024, depth=6, embedding_dim=256)
    assert sum(p.numel() for p in network.parameters()) == 6_664_730


def test_fourier_features():
    features = FourierFeatures()
    x = torch.tensor([0.3, -1.0])
    angles = 2 * torch.pi * x[:, None] * features.frequencies
    assert torch.allclose(features(x), torch.cat([x[:, None], angles.sin(), angles.cos()], 1))
    restored = FourierFeatures()
    restored.load_state_dict(features.state_dict())
    assert torch.equal(restored(x), features(x)) and not list(features.parameters())


def test_labels_change_the_output_and_a_scalar_noise_level_serves_every_row():
    torch.manual_seed(0)
    network = ResidualMLP(5, width=16, depth=2, embedding_dim=8, condition=LabelEmbedding(2, 8))
    x = torch.randn(1, 5).expand(3, 5)
    out = network(x, torch.tensor([0.1]), torch.tensor([0, 1, 2]))
    assert out.shape == (3, 5) and not torch.allclose(out[0], out[1]) and not torch.allclose(out[1], out[2])
    assert torch.allclose(out, network(x, torch.full((3,), 0.1), torch.tensor([0, 1, 2])), atol=1e-6)


def test_a_score_is_embedded_and_none_is_zeros():
    torch.manual_seed(0)
    embedding = ScoreEmbedding(4)
    out = embedding(torch.tensor([0.3, embedding.null, 0.3, -0.3]))
    assert (out[1] == 0).all() and torch.equal(out[0], out[2]) and not torch.allclose(out[0], out[3])
    gradients = torch.autograd.grad(out.sum(), list(embedding.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_output_against_its_equation():
    torch.manual_seed(0)
    network, x, noise = ResidualMLP(5, width=16, depth=2, embedding_dim=8), torch.randn(3, 5), torch.randn(3)
    h = network.widen(network.encode(x) + network.noise_embedding(noise))
    for block in network.blocks:
        h = h + block[1](h.relu())
    torch.testing.assert_close(network(x, noise), network.decode[1](h.relu()))
    assert not torch.allclose(network(x, noise), network(x, noise + 1))
