"""Networks and steps of the plain learners."""

import torch
from torch import Tensor, nn
from torch.distributions import Normal

LOG_STD_RANGE = (-20.0, 2.0)


def mlp(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


class Critic(nn.Module):
    """Q(s, a)."""

    def __init__(self, observation_dim: int, action_dim: int, width: int):
        super().__init__()
        self.net = mlp(observation_dim + action_dim, 1, width)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[B, .], [B, .] -> [B]."""
        return self.net(torch.cat([observations, actions], dim=-1)).squeeze(-1)


class GaussianActor(nn.Module):
    """N(tanh(mean(s)), sigma), one sigma for all states."""

    def __init__(self, observation_dim: int, action_dim: int, width: int):
        super().__init__()
        self.net = mlp(observation_dim, action_dim, width)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, observations: Tensor) -> Normal:
        """[B, .] -> the distribution of actions."""
        return Normal(self.net(observations).tanh(), self.log_std.clamp(-5, 2).exp())


class TanhGaussianActor(nn.Module):
    """A squashed Gaussian; sigma depends on the state unless `free_std`."""

    def __init__(self, observation_dim: int, action_dim: int, width: int, *, free_std: bool = False):
        super().__init__()
        self.net = mlp(observation_dim, action_dim if free_std else 2 * action_dim, width)
        self.log_std = nn.Parameter(torch.zeros(action_dim)) if free_std else None

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """[B, .] -> sampled actions [B, A] and their log-densities [B]."""
        outputs = self.net(observations)
        mean, log_std = outputs.chunk(2, dim=-1) if self.log_std is None else (outputs, self.log_std)
        normal = Normal(mean, log_std.clamp(*LOG_STD_RANGE).exp())
        u = normal.rsample()
        actions = u.tanh()
        log_prob = normal.log_prob(u).sum(-1) - (1 - actions.pow(2) + 1e-6).log().sum(-1)
        return actions, log_prob


def adam(*modules: nn.Module) -> torch.optim.Adam:
    """Adam for the parameters of `modules`."""
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=3e-4)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, tau: float = 0.005) -> None:
    """Polyak averaging."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.copy_((1 - tau) * slow + tau * fast)
