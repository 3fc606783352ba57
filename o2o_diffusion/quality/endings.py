"""Whether rows that end an episode are marked as endings, by trees fitted to the endings of real rows."""

import torch
from torch import Tensor

from o2o_diffusion.quality.real import moving
from o2o_diffusion.types import Transitions

ROWS = 5_000
"""Most rows without an ending to fit to."""
FEWEST = 10
"""Fewest endings for a number."""


class Endings:
    """A classifier of terminations given (s, a, s'), fitted to real rows."""

    def __init__(self, real: Transitions, *, seed: int = 0):
        from sklearn.ensemble import HistGradientBoostingClassifier

        ended = real.terminations > 0.5
        others = torch.nonzero(~ended).flatten()
        chosen = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:ROWS]]
        rows = torch.cat([torch.nonzero(ended).flatten(), chosen])
        self.known = bool(ended.sum() >= FEWEST and len(others) >= FEWEST)
        self.trees = HistGradientBoostingClassifier(random_state=seed, early_stopping=False)  # pyright: ignore[reportArgumentType]
        if self.known:
            self.goals = ~moving(real)
            self.trees.fit(self.inputs(real[rows]).numpy(), ended[rows].numpy())

    def __call__(self, rows: Transitions) -> dict[str, float]:
        """Share of `missed_endings` among rows that end, and of `false_endings` among rows marked as endings.

        A number is left out if there are fewer than 10 such rows.
        """
        if not self.known:
            return {}
        marked, ends = rows.terminations > 0.5, torch.from_numpy(self.trees.predict(self.inputs(rows).numpy()))
        shares = {"missed_endings": (ends, ~marked), "false_endings": (marked, ~ends)}
        return {name: float(wrong[of].float().mean()) for name, (of, wrong) in shares.items() if of.sum() >= FEWEST}

    def inputs(self, rows: Transitions) -> Tensor:
        """[B, D] what an ending may depend on, with changes and distances to goals, because trees can't subtract."""
        changes = rows.next_observations - rows.observations
        goals = rows.observations[:, None, self.goals] - rows.next_observations[:, ~self.goals, None]
        return torch.cat([rows.observations, rows.actions, rows.next_observations, changes, goals.abs().flatten(1)], 1)
