"""Numbers that are not finite: such updates are counted, and such weights are never saved."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from o2o_diffusion.errors import Fault
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics


class SkippedUpdates(Stateful):
    """Counts updates with a loss that is not finite, on the device; `Optimizer.step` has left the weights unchanged.

    `count` is their number since the last check, `in_a_row` the number of the latest ones without a finite one between.
    """

    state_fields = ("count", "in_a_row")

    def __init__(self, limit: int):
        self.limit = limit
        self.count = self.in_a_row = torch.zeros(())

    def add(self, metrics: Metrics) -> None:
        """Count an update by its metrics whose names end in "loss"; they stay on their device."""
        losses = [value for name, value in metrics.items() if name.endswith("loss")]
        if losses:
            total = torch.as_tensor(sum(losses))
            is_skipped = (total - total).ne(0)  # inf - inf is NaN
            self.count = self.count + is_skipped
            self.in_a_row = (self.in_a_row + 1) * is_skipped

    def check(self, what: str) -> int:
        """Return the count and reset it; raises Fault if the last `limit` updates in a row were skipped."""
        count, in_a_row = int(self.count), int(self.in_a_row)
        self.count = torch.zeros(())
        if in_a_row >= self.limit:
            raise Fault(f"{what}: the last {in_a_row:,} updates had a loss or gradient that is not finite: it diverged")
        return count


def check_finite(**components: Any) -> None:
    """Raise Fault if any weight or moment of the components is not finite."""
    for name, component in components.items():
        for where, tensor in trained(component, name):
            if not torch.isfinite(tensor).all():
                raise Fault(f"{where} is not finite, so that no checkpoint was written")


def trained(part: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter and every moment of a component and its parts."""
    if isinstance(part, nn.Module):
        yield from ((f"{name}.{key}", parameter) for key, parameter in part.named_parameters())
    elif isinstance(part, Optimizer):
        yield from ((f"{name}'s moments", tensor) for tensor in (*part.means, *part.squares))
    else:
        parts = vars(part) if hasattr(part, "__dict__") else {}
        for key, child in parts.items():
            if hasattr(child, "state_dict"):
                yield from trained(child, f"{name}.{key}")
