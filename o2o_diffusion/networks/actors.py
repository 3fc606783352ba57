"""Policy networks and their action distributions.

The distributions are small custom classes: `torch.distributions` broadcasts and validates at every construction, and
its squashed Gaussian loses precision as |action| approaches 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.mlp import MLP, RELU_GAIN
from o2o_diffusion.networks.normalizer import Normalizer

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
MAX_ACTION = 1 - 1e-5  # atanh is still accurate here in float32; larger actions get the density at this bound


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag exp(log_std)^2): mean [..., B, A]; log_std [..., B, A] or [..., 1, A]."""

    mean: Tensor
    log_std: Tensor

    @property
    def mode(self) -> Tensor:
        """[B, A], the most likely actions."""
        return self.mean

    def sample(self, rng: ShardedRng) -> Tensor:
        """[B, A], differentiable in the parameters; unbounded."""
        return self.mean + self.log_std.exp() * rng.normal(*self.mean.shape)

    def log_prob(self, actions: Tensor) -> Tensor:
        """[B] log-density of `actions` [B, A]."""
        z = (actions - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + LOG_SQRT_2PI).sum(-1)


@dataclass(frozen=True)
class Deterministic(Gaussian):
    """Deterministic actions `mean`; `log_std` is for exploration only, and there is no density."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Raise TypeError, because there is no density."""
        raise TypeError("a deterministic policy has no density")


@dataclass(frozen=True)
class TanhGaussian:
    """tanh(u), u ~ `base`; densities are of the squashed variable, in (-1, 1)."""

    base: Gaussian

    @property
    def mode(self) -> Tensor:
        """[B, A], tanh of the underlying mean."""
        return self.base.mean.tanh()

    def repeat(self, count: int) -> "TanhGaussian":
        """`count` copies of each row's distribution, with samples [..., B, count, A]."""
        mean, log_std = self.base.mean, self.base.log_std
        return TanhGaussian(Gaussian(repeat(mean, "... a -> ... n a", n=count), rearrange(log_std, "... a -> ... 1 a")))

    def sample(self, rng: ShardedRng) -> Tensor:
        """[B, A] in [-1, 1], differentiable in the parameters."""
        return self.base.sample(rng).tanh()

    def sample_with_log_prob(self, rng: ShardedRng) -> tuple[Tensor, Tensor]:
        """Samples [B, A] and their log-densities [B], exact even if tanh rounds to 1."""
        u = self.base.sample(rng)
        return u.tanh(), self._log_prob(u)

    def log_prob(self, actions: Tensor) -> Tensor:
        """[B] log-density of `actions` [B, A], clipped to +-(1 - 1e-5) to keep the density finite."""
        return self._log_prob(actions.clamp(-MAX_ACTION, MAX_ACTION).atanh())

    def _log_prob(self, u: Tensor) -> Tensor:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)) avoids cancellation
        return self.base.log_prob(u) - 2 * (math.log(2) - u - F.softplus(-2 * u)).sum(-1)


class GaussianActor(nn.Module):
    """IQL's policy N(tanh(mlp(s)), diag sigma^2): unsquashed, with state-independent sigma.

    The tanh bounds only the mean, so there is no Jacobian; samples must be clipped. `context_dim` is the width of an
    optional second input, which is not normalized.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        context_dim: int = 0,
        dropout: float = 0.0,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
    ):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim + context_dim, hidden, action_dim, dropout=dropout)
        self.log_std = nn.Parameter(torch.zeros(action_dim))
        self.log_std_range = log_std_range

    def forward(
        self, observations: Tensor, context: Tensor | None = None, *, rng: ShardedRng | None = None
    ) -> Gaussian:
        """[B, observation_dim] (and [B, context_dim]) -> action distribution; `rng` enables dropout."""
        x = self.normalizer(observations)
        if context is not None:
            x = torch.cat([x, context], dim=-1)
        return Gaussian(self.mlp(x, rng).tanh(), self.log_std.clamp(*self.log_std_range).unsqueeze(-2))


class TanhGaussianActor(nn.Module):
    """SAC's policy tanh(N(mean(s), diag sigma(s)^2)); `state_dependent_std=False` makes sigma one vector (FamO2O).

    `output_gain` scales the last layer's initial weights; a small gain gives initial mean 0 and sigma 1 in every state.
    With `affine_log_std`, log sigma is m times the network's output plus b, with learned m and b, initially 1 and -1
    (CQL). `context_dim` is the width of an optional second input, which is not normalized. With `ensemble_size`, that
    many policies with separate weights, and distributions of [E, B, A].
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        *,
        context_dim: int = 0,
        state_dependent_std: bool = True,
        affine_log_std: bool = False,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
        layer_norm: bool = False,
        output_gain: float = RELU_GAIN,
        ensemble_size: int | None = None,
    ):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        outputs = 2 * action_dim if state_dependent_std else action_dim
        inputs = observation_dim + context_dim
        options = {"layer_norm": layer_norm, "output_gain": output_gain, "ensemble_size": ensemble_size}
        self.mlp = MLP(inputs, hidden, outputs, **options)
        self.log_std = None if state_dependent_std else nn.Parameter(torch.zeros(action_dim))
        self.affine = nn.Parameter(torch.tensor([1.0, -1.0])) if affine_log_std else None
        self.log_std_range = log_std_range

    def forward(self, observations: Tensor, context: Tensor | None = None) -> TanhGaussian:
        """[B, observation_dim] (and [B, context_dim]) -> action distribution."""
        x = self.normalizer(observations)
        if context is not None:
            x = torch.cat([x, context], dim=-1)
        outputs = self.mlp(x)
        mean, log_std = outputs.chunk(2, dim=-1) if self.log_std is None else (outputs, self.log_std.unsqueeze(-2))
        if self.affine is not None:
            scale, shift = self.affine[..., None, None].unbind(-3)
            log_std = scale * log_std + shift
        return TanhGaussian(Gaussian(mean, log_std.clamp(*self.log_std_range)))


class DeterministicActor(nn.Module):
    """TD3's policy tanh(mlp(s)), with small last-layer weights so that no action starts at a bound.

    With `ensemble_size`, that many policies with separate weights.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int], *, ensemble_size: int | None = None
    ):
        super().__init__()
        self.normalizer = Normalizer(observation_dim)
        self.mlp = MLP(observation_dim, hidden, action_dim, ensemble_size=ensemble_size, output_gain=0.01)

    def forward(self, observations: Tensor) -> Tensor:
        """[B, observation_dim] -> actions [B, A] in [-1, 1], or [E, B, A] of an ensemble."""
        return self.mlp(self.normalizer(observations)).tanh()


class Temperature(nn.Module):
    """A positive multiplier, parameterized by its logarithm, which is initially `log`."""

    def __init__(self, log: float = 0.0):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(log))

    def forward(self) -> Tensor:
        """The multiplier, a scalar."""
        return self.log.exp()


class Softplus(nn.Module):
    """A positive multiplier, the softplus of a parameter, initially `value`."""

    def __init__(self, value: float):
        super().__init__()
        self.parameter = nn.Parameter(torch.tensor(math.log(math.expm1(value))))

    def forward(self) -> Tensor:
        """The multiplier, a scalar."""
        return F.softplus(self.parameter)
