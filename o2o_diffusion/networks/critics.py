"""State-action and state value networks."""

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor, nn
from torch.func import functional_call

from o2o_diffusion.networks.mlp import MLP, RELU_GAIN
from o2o_diffusion.networks.normalizer import Normalizer


class Critic(nn.Module):
    """An ensemble of E state-action values with independent weights, evaluated together."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        ensemble_size: int = 2,
        layer_norm: bool = False,
        output_gain: float = RELU_GAIN,
    ):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        inputs = observation_dim + action_dim
        self.mlp = MLP(inputs, hidden, 1, ensemble_size=ensemble_size, layer_norm=layer_norm, output_gain=output_gain)

    def forward(self, observations: Tensor, actions: Tensor, members: Tensor | None = None) -> Tensor:
        """[..., B, observation_dim], [..., B, action_dim] -> q [..., E, B].

        With N actions per row, [..., B, N, action_dim] -> [..., E, B, N]. If given, only `members` ([..., M] int64) of
        the ensemble are evaluated. Where inputs are differentiable, the weights are constants.
        """
        stacked = observations.ndim - 2  # axes of seeds
        x = self.normalizer(observations)
        if actions.ndim > observations.ndim:
            x = repeat(x, "... d -> ... n d", n=actions.shape[-2])
        x = torch.cat([x, actions], dim=-1).flatten(stacked, -2)
        if members is None:
            q = self.mlp(x, constant=x.requires_grad)
        else:  # the axis of the ensemble in every parameter is the first after the seeds'
            chosen = {name: select(weight, members) for name, weight in self.mlp.named_parameters()}
            q = functional_call(self.mlp, chosen, x)
        return q.squeeze(-1).unflatten(-1, actions.shape[stacked:-1])

    def own(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[..., B, observation_dim] and actions of each member [..., E, B, action_dim] -> q [..., E, B].

        With N actions per row, [..., E, B, N, action_dim] -> [..., E, B, N].
        """
        rows = observations.ndim - 1  # the axis of rows in `actions`
        x = self.normalizer(observations).unsqueeze(-3)
        if actions.ndim > x.ndim:
            x = x.unsqueeze(-2)
        x = torch.cat([x.expand(*actions.shape[:-1], -1), actions], dim=-1).flatten(rows, -2)
        return self.mlp(x, per_member=True, constant=x.requires_grad).squeeze(-1).unflatten(-1, actions.shape[rows:-1])


class Value(nn.Module):
    """A state value network."""

    def __init__(self, observation_dim: int, hidden: Sequence[int]):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim, hidden, 1)

    def forward(self, observations: Tensor) -> Tensor:
        """[..., B, observation_dim] -> v [..., B]."""
        return self.mlp(self.normalizer(observations)).squeeze(-1)


def select(values: Tensor, members: Tensor) -> Tensor:
    """The `members` [M] of `values` [E, ...], or for K seeds, [K, M] of [K, E, ...]."""
    if members.ndim == 1:
        return values[members]
    return values[torch.arange(len(members), device=members.device)[:, None], members]
