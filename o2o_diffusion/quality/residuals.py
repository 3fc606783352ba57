"""How unusual actions are for their states, and outcomes for states and actions, by regressions on real rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng, seeded
from o2o_diffusion.networks.regression import Regression
from o2o_diffusion.quality.real import moving
from o2o_diffusion.types import Transitions

ROWS, UPDATES, HIDDEN = 20_000, 1_000, (128, 128)
"""Most rows, updates and hidden units of a regression; small, because only ratios to real rows matter."""
LEVELS = 0.5, 0.9
"""Quantiles to compare: the middle and the tail of the rows."""


class Residuals:
    """The mean and the deviation of a and of (r, s' - s) given s and (s, a), fitted to real rows.

    Columns of s that never change within an episode are no outcomes.
    """

    def __init__(self, real: Transitions, *, seed: int = 0):
        real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:ROWS]]
        moves = moving(real)
        self.parts: dict[str, Callable[[Transitions], tuple[Tensor, Tensor]]] = {
            "actions": lambda rows: (rows.observations, rows.actions),
            "outcomes": lambda rows: (
                torch.cat([rows.observations, rows.actions], 1),
                torch.cat([rows.rewards[:, None], (rows.next_observations - rows.observations)[:, moves]], 1),
            ),
        }
        self.models = {name: _fitted(*part(real), seed) for name, part in self.parts.items()}

    @torch.no_grad()
    def deviations(self, name: str, rows: Transitions) -> Tensor:
        """[B] root mean square over columns of the standardized residuals of "actions" or "outcomes"."""
        return self.models[name].standardize(*self.parts[name](rows)).square().mean(1).sqrt()

    def ratio(self, name: str, rows: Transitions, real: Transitions) -> float:
        """How many times as large the deviations of `rows` are as those of `real` rows, at the worst of two quantiles.

        About 1 for rows of the same distribution, even where the regression fits badly.
        """
        levels = torch.tensor(LEVELS)
        first, second = (self.deviations(name, batch).quantile(levels) for batch in (rows, real))
        return float((first / second.clamp(min=1e-6)).max())


def _fitted(inputs: Tensor, targets: Tensor, seed: int) -> Regression:
    with seeded(seed):
        model = Regression(inputs.shape[1], targets.shape[1], hidden=HIDDEN)
    return model.fit(inputs, targets, rng=ShardedRng(seed, shared=False), updates=UPDATES)
