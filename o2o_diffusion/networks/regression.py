"""Heteroscedastic regression: the mean and the standard deviation of targets as functions of inputs.

The residuals (target - mean) / std are standardized at every input, so that rows with different noise levels can be
compared, modeled and drawn on one scale. Nix and Weigend (1994), https://doi.org/10.1109/ICNN.1994.374138.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng, seeded
from o2o_diffusion.networks.actors import Gaussian
from o2o_diffusion.networks.normalizer import Normalizer

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0
"""Limits of the log standard deviation, in standard deviations of the target column over all rows."""
MIDDLE, HALF = (MAX_LOG_STD + MIN_LOG_STD) / 2, (MAX_LOG_STD - MIN_LOG_STD) / 2


class Regression(nn.Module):
    """targets ~ N(mean(inputs), diag std(inputs)^2): one SiLU network for both; normalizers are inside.

    Inputs are [B, input_dim] and targets [B, target_dim], raw. Untrained, mean and standard deviation are close to
    those of the targets over all rows.
    """

    def __init__(self, input_dim: int, target_dim: int, *, hidden: Sequence[int] = (256, 256)):
        super().__init__()
        self.inputs, self.targets = Normalizer(input_dim), Normalizer(target_dim)
        widths = [input_dim, *hidden]
        layers = [(nn.Linear(fan_in, fan_out), nn.SiLU()) for fan_in, fan_out in zip(widths, hidden, strict=False)]
        self.hidden = nn.Sequential(*(part for layer in layers for part in layer))
        self.output = nn.Linear(widths[-1], 2 * target_dim)
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.copy_(torch.tensor([0.0, HALF * math.atanh(-MIDDLE / HALF)]).repeat_interleave(target_dim))

    def forward(self, inputs: Tensor) -> Gaussian:
        """The distribution of the targets of `inputs`."""
        mean, log_std = self._normalized(inputs)
        return Gaussian(self.targets.mean + self.targets.std * mean, self.targets.std.log() + log_std)

    def log_prob(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """[B] log-densities of `targets`."""
        return self(inputs).log_prob(targets)

    def standardize(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """[B, target_dim] residuals of `targets`: mean 0 and variance 1 at every input, if the fit is good."""
        predicted = self(inputs)
        return (targets - predicted.mean) * (-predicted.log_std).exp()

    def invert(self, inputs: Tensor, residuals: Tensor) -> Tensor:
        """[B, target_dim] targets with the given `residuals`, the inverse of `standardize`."""
        predicted = self(inputs)
        return predicted.mean + residuals * predicted.log_std.exp()

    def fit_normalizers(self, inputs: Tensor, targets: Tensor) -> None:
        """Set the statistics of both normalizers."""
        self.inputs.fit(inputs)
        self.targets.fit(targets, min_std=1e-6)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """[] mean over rows and columns of the negative log-likelihood of the normalized targets.

        The gradient is weighted by the variance, detached, to the power 1/2: otherwise columns that are already
        predicted well keep all the capacity (Seitzer et al., 2022, https://arxiv.org/abs/2203.09168).
        """
        mean, log_std = self._normalized(inputs)
        z = (self.targets(targets) - mean) * (-log_std).exp()
        return (log_std.detach().exp() * (0.5 * z.square() + log_std)).mean()

    def fit(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        rng: ShardedRng,
        updates: int,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
    ) -> "Regression":
        """Fit normalizers and network to all rows in `updates` steps of Adam with a cosine learning rate; returns self.

        No process communicates: one may fit alone, and all with an equal unshared `rng` fit the same.
        """
        self.fit_normalizers(inputs, targets)
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(updates, 1))
        with torch.enable_grad():
            for _ in range(updates):
                rows = rng.integers(len(inputs), min(batch_size, len(inputs))).to(inputs.device)
                optimizer.zero_grad(set_to_none=True)
                self.loss(inputs[rows], targets[rows]).backward()
                optimizer.step()
                schedule.step()
        return self

    def _normalized(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """[B, target_dim] mean and log standard deviation of the normalized targets."""
        mean, log_std = self.output(self.hidden(self.inputs(inputs))).chunk(2, dim=-1)
        return mean, MIDDLE + HALF * (log_std / HALF).tanh()


def fitted(
    inputs: Tensor, targets: Tensor, *, seed: int = 0, updates: int = 2_000, batch_size: int = 256
) -> Regression:
    """A new regression of `targets` on `inputs`, on their device, equal for equal seeds."""
    with seeded(seed):
        regression = Regression(inputs.shape[1], targets.shape[1]).to(inputs.device)
    rng = ShardedRng(seed, shared=False)
    return regression.fit(inputs, targets, rng=rng, updates=updates, batch_size=batch_size)
