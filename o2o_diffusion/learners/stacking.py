"""K learners of one kind updated as one, with [K, ...] parameters in place of K separate updates.

The losses hold for both, because ensembles are reduced over axis -2 and batches over axis -1.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Transitions


class StackedRng(ShardedRng):
    """The random streams of K seeds side by side: draws are [K, ...], each seed's from its own stream."""

    def __init__(self, rngs: Sequence[ShardedRng]):
        self.rngs = rngs

    def members(self, size: int, high: int, *, replacement: bool = False) -> Tensor:
        """Draw [K, size] integers in [0, high), the same on every process; all different without `replacement`."""
        return torch.stack([rng.members(size, high, replacement=replacement) for rng in self.rngs])

    def _draw(self, function: Callable[..., Tensor], batch_size: int, *shape: int) -> Tensor:
        return torch.stack([rng._draw(function, *shape) for rng in self.rngs])  # `batch_size` is K


class Stack:
    """Updates `learners` together; each one still acts, answers and is saved on its own.

    The learners differ in their seeds only and have had equally many updates. Their parameters, buffers and moments
    become views of [K, ...] tensors of one more learner of their class, so that they follow its updates. They must be
    stacked anew if one of them is replaced or gets other tensors, as at the start of a phase.
    """

    def __init__(self, learners: Sequence[Any]):
        self.learners, self.whole = learners, deepcopy(learners[0])
        join(self.whole, learners)

    def update(self, batches: Sequence[Transitions]) -> list[Metrics]:
        """Run one update of every learner, each on its batch; returns the metrics of each."""
        copy_host_state(self.learners[0], self.whole)
        metrics = self.whole.update(Transitions.stack(batches))
        for learner in self.learners:
            copy_host_state(self.whole, learner)
        columns = {name: values.unbind() for name, values in metrics.items()}
        return [{name: column[k] for name, column in columns.items()} for k in range(len(batches))]


def join(whole: Any, learners: Sequence[Any]) -> None:
    """Let the tensors and random streams of `whole`, and of a learner inside it, be those of `learners` stacked."""
    for name, part in vars(whole).items():
        parts = [getattr(learner, name) for learner in learners]
        if isinstance(part, Stateful):
            join(part, parts)
        elif isinstance(part, ShardedRng):
            setattr(whole, name, StackedRng(parts))
        elif isinstance(part, (nn.Module, Optimizer)):
            for stacked, *views in zip(tensors(part), *map(tensors, parts), strict=True):
                share(stacked, views)
        if isinstance(part, Optimizer):
            for single in parts:
                single.steps = part.steps


def host_state(learner: Any) -> dict[str, Any]:
    """The values that stacked learners have in common, such as the phase and the number of updates."""
    return {name: getattr(learner, name) for name in learner.state_fields}


def copy_host_state(source: Any, target: Any) -> None:
    """Set the values that stacked learners have in common."""
    for name, value in host_state(source).items():
        setattr(target, name, value)
    for name, part in vars(source).items():
        if isinstance(part, Stateful):
            copy_host_state(part, getattr(target, name))


def tensors(part: nn.Module | Optimizer) -> Iterable[Tensor]:
    """Every tensor that an update changes in the same way for all seeds, but with other values."""
    if isinstance(part, Optimizer):
        return (*part.means, *part.squares)
    return (*part.parameters(), *part.buffers())


@torch.no_grad()
def share(whole: Tensor, parts: Sequence[Tensor]) -> None:
    """Let `whole` be `parts` stacked, and each part a view of it."""
    whole.data = torch.stack([part.data for part in parts])
    for part, view in zip(parts, whole.data, strict=True):
        part.data = view
