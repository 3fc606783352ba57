"""Models of an outcome (reward, next state) given state, action and label: an ensemble, or a denoiser; and of endings.

The first two are modules with the same three methods, so that either can be used. Inputs are [B, input_dim] and
outcomes [B, outcome_dim], both raw; every column has its own scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from o2o_diffusion.diffusion.loss import denoising_loss, draw_sigma
from o2o_diffusion.diffusion.preconditioning import precondition
from o2o_diffusion.diffusion.sampling import NoiseLevels, Sampling, solve
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.ensemble import RegressionEnsemble
from o2o_diffusion.networks.mlp import MLP
from o2o_diffusion.networks.normalizer import Normalizer
from o2o_diffusion.networks.residual_mlp import ResidualMLP, VectorEmbedding


class EnsembleOutcomes(nn.Module):
    """The mean of a random member of an ensemble of regressions; `noisy` adds the member's own noise."""

    def __init__(self, input_dim: int, outcome_dim: int, *, size: int, width: int, depth: int, noisy: bool):
        super().__init__()
        self.ensemble = RegressionEnsemble(input_dim, outcome_dim, size=size, hidden=[width] * depth)
        self.noisy = noisy

    def fit_normalizers(self, inputs: Tensor, outcomes: Tensor) -> None:
        """Set the members' statistics."""
        self.ensemble.fit_normalizers(inputs, outcomes)

    def loss(self, inputs: Tensor, outcomes: Tensor, rng: ShardedRng) -> Tensor:
        """Negative log-likelihood, each member on its own part of the batch."""
        return self.ensemble.loss(inputs, outcomes)

    def sample(self, inputs: Tensor, rng: ShardedRng) -> Tensor:
        """[B, outcome_dim], the members' means, or draws around them if `noisy`."""
        predicted = self.ensemble.predict(inputs, rng)
        return predicted.sample(rng) if self.noisy else predicted.mean


class DenoisedOutcomes(nn.Module):
    """The transition denoiser's network over outcomes only, with the inputs as its condition."""

    def __init__(self, input_dim: int, outcome_dim: int, *, width: int, depth: int, sampling: Sampling):
        super().__init__()
        self.inputs, self.outcomes = Normalizer(input_dim), Normalizer(outcome_dim)
        embedding = VectorEmbedding(input_dim, width)
        self.network = ResidualMLP(outcome_dim, width=width, depth=depth, embedding_dim=width, condition=embedding)
        self.sampling, self.levels = sampling, NoiseLevels()

    def fit_normalizers(self, inputs: Tensor, outcomes: Tensor) -> None:
        """Set the statistics of both normalizers."""
        self.inputs.fit(inputs)
        self.outcomes.fit(outcomes, min_std=1e-6)

    def loss(self, inputs: Tensor, outcomes: Tensor, rng: ShardedRng) -> Tensor:
        """Denoising loss of the outcomes."""
        x, condition = self.outcomes(outcomes), self.inputs(inputs)
        sigma, noise = draw_sigma(rng.normal(len(x), 1)), rng.normal(*x.shape)
        return denoising_loss(lambda x, sigma: self.denoise(x, sigma, condition), x, sigma, noise)

    @torch.no_grad()
    def sample(self, inputs: Tensor, rng: ShardedRng) -> Tensor:
        """[B, outcome_dim], solved from noise."""
        condition = self.inputs(inputs)
        noise = self.levels.sigma_max * rng.normal(len(inputs), len(self.outcomes.mean))
        denoise = lambda x, sigma: self.denoise(x, sigma, condition)  # noqa: E731
        x = solve(denoise, noise, self.sampling, self.levels, rng.normal)
        return x * self.outcomes.std + self.outcomes.mean

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """Expected clean outcomes of normalized `x`, given normalized inputs."""
        return precondition(self.network)(x, sigma, condition)


class Endings(nn.Module):
    """The probability that a transition ends its episode, as a function of its input and its next state.

    Not of its reward: real rewards tell whether an episode ended, and predicted ones don't.
    """

    def __init__(self, input_dim: int, outcome_dim: int, *, width: int, depth: int):
        super().__init__()
        self.normalizer = Normalizer(input_dim + outcome_dim - 1)
        self.mlp = MLP(input_dim + outcome_dim - 1, [width] * depth, 1, output_gain=0.01)

    def fit_normalizers(self, inputs: Tensor, outcomes: Tensor) -> None:
        """Set the statistics of inputs and next states."""
        self.normalizer.fit(self.columns(inputs, outcomes))

    def forward(self, inputs: Tensor, outcomes: Tensor) -> Tensor:
        """[B] logits."""
        return self.mlp(self.normalizer(self.columns(inputs, outcomes))).squeeze(-1)

    def columns(self, inputs: Tensor, outcomes: Tensor) -> Tensor:
        """[B, input_dim + outcome_dim - 1] inputs and next states."""
        return torch.cat([inputs, outcomes[:, 1:]], dim=1)

    def loss(self, inputs: Tensor, outcomes: Tensor, terminations: Tensor) -> Tensor:
        """[] cross-entropy."""
        return F.binary_cross_entropy_with_logits(self(inputs, outcomes), terminations)


class Dynamics(nn.Module):
    """An outcome model and its endings, trained together and asked together."""

    def __init__(self, model: EnsembleOutcomes | DenoisedOutcomes, endings: Endings):
        super().__init__()
        self.model, self.endings = model, endings

    def fit_normalizers(self, inputs: Tensor, outcomes: Tensor) -> None:
        """Set the statistics of both."""
        for part in (self.model, self.endings):
            part.fit_normalizers(inputs, outcomes)

    def loss(self, inputs: Tensor, outcomes: Tensor, terminations: Tensor, rng: ShardedRng) -> Tensor:
        """[], the sum of both losses, which share no parameters."""
        return self.model.loss(inputs, outcomes, rng) + self.endings.loss(inputs, outcomes, terminations)

    def sample(self, inputs: Tensor, rng: ShardedRng) -> tuple[Tensor, Tensor]:
        """Outcomes [B, outcome_dim] and terminations [B], drawn with their probability, so that they are as many."""
        outcomes = self.model.sample(inputs, rng)
        return outcomes, (rng.uniform(len(inputs)) < self.endings(inputs, outcomes).sigmoid()).float()
