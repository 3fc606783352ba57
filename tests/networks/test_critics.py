import torch
import torch.nn.functional as F

from o2o_diffusion.networks.critics import Critic, Value
from o2o_diffusion.networks.mlp import MLP, EnsembleLinear, orthogonal
from o2o_diffusion.networks.normalizer import Normalizer


def test_ensemble_equals_its_members_one_by_one():
    mlp = MLP(4, (8, 8), 2, ensemble_size=3, layer_norm=True)
    x = torch.randn(5, 4)
    for member in range(3):
        h = x
        for layer, norm in zip(mlp.layers[:-1], mlp.norms, strict=True):
            h = F.linear(h, layer.weight[member].T, layer.bias[member, 0])
            h = F.relu(F.layer_norm(h, (8,), norm.weight[member, 0], norm.bias[member, 0]))
        expected = F.linear(h, mlp.layers[-1].weight[member].T, mlp.layers[-1].bias[member, 0])
        torch.testing.assert_close(mlp(x)[member], expected)


def test_ensemble_takes_an_input_for_each_member():
    layer, x = orthogonal(EnsembleLinear(3, 4, 2), 1.0), torch.randn(5, 4)
    torch.testing.assert_close(layer(x[None]), layer(x.repeat(3, 1, 1)))


def test_members_start_apart_with_orthogonal_weights():
    weight = MLP(16, (16,), 1, ensemble_size=2).layers[0].weight
    torch.testing.assert_close(weight[0] @ weight[0].T, 2 * torch.eye(16), atol=1e-5, rtol=0)
    assert not torch.equal(weight[0], weight[1])


def test_shapes():
    assert Critic(3, 2, (8,), ensemble_size=4)(torch.randn(5, 3), torch.randn(5, 2)).shape == (4, 5)
    assert Value(3, (8,))(torch.randn(5, 3)).shape == (5,)


def test_normalizer_standardizes_with_a_floor():
    rows = torch.stack([5 + 3 * torch.randn(1000), torch.full((1000,), 7.0)], dim=1)
    normalizer = Normalizer(2)
    assert torch.equal(normalizer(rows), rows)
    normalizer.fit(rows)
    x = normalizer(rows)
    assert abs(x[:, 0].mean()) < 1e-4 and abs(x[:, 0].std() - 1) < 1e-2
    assert torch.equal(x[:, 1], torch.zeros(1000)) and normalizer.std[1] == torch.tensor(1e-3)


def test_the_output_layer_has_its_own_gain():
    first, last = (layer.weight for layer in MLP(16, (16,), 16, output_gain=0.01).layers)
    torch.testing.assert_close(first @ first.T, 2 * torch.eye(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(16), atol=1e-8, rtol=0)
