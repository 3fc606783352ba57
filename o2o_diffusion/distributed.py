"""The same algorithm on any number of processes: identical draws, sharded rows, averaged results.

No setup is needed: without a process group there is one process and every function is the identity.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor


def num_processes() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 is the main process, which steps the environment, evaluates and writes files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class Sliceable(Protocol):
    """A tensor, or a batch of tensors."""

    def __getitem__(self, rows: slice, /) -> Any: ...


Rows = TypeVar("Rows", bound=Sliceable)


def shard(batch: Rows) -> Rows:
    """This process's rows `[rank::N]` of a batch drawn identically on every process."""
    return batch[rank() :: num_processes()] if num_processes() > 1 else batch


def average(tensors: Sequence[Tensor]) -> None:
    """Average `tensors` over processes, in place, in a single all-reduce."""
    if num_processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= num_processes()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def mean(values: Tensor) -> Tensor:
    """Mean of `values` [..., B] over B and all processes, detached; for statistics that enter a loss nonlinearly."""
    result = values.detach().mean(-1)
    average([result])
    return result


def broadcast(tensor: Tensor) -> Tensor:
    """Copy `tensor` from the main process to all others, in place."""
    if num_processes() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather(part: Tensor) -> Tensor:
    """Reassemble a batch from each process's rows `[rank::N]`; all parts have the same length."""
    if num_processes() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(num_processes())]
    dist.all_gather(parts, part.contiguous())
    return rearrange(parts, "process row ... -> (row process) ...")


def broadcast_bool(decision: bool, device: torch.device | str = "cpu") -> bool:
    """Return the main process's decision on every process."""
    return bool(broadcast(torch.tensor(int(decision), device=device))) if num_processes() > 1 else decision


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global random number generator inside the context, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class ShardedRng:
    """A component's own random number generator: every process has the same seed and keeps its own rows.

    N processes together draw the same numbers as one process with the whole batch, so that the algorithm does not
    depend on N. With `shared=False`, each process draws only its own numbers, for work done by one process alone.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", *, shared: bool = True):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.shared = self.generator.device, shared

    def normal(self, batch_size: int, *shape: int) -> Tensor:
        """Draw [batch_size, *shape] standard normal numbers; `batch_size` counts the rows of this process."""
        return self._draw(torch.randn, batch_size, *shape)

    def uniform(self, batch_size: int, *shape: int) -> Tensor:
        """Draw [batch_size, *shape] uniform numbers in [0, 1); `batch_size` counts the rows of this process."""
        return self._draw(torch.rand, batch_size, *shape)

    def integers(self, high: int | Tensor, batch_size: int, *shape: int) -> Tensor:
        """Draw [batch_size, *shape] uniform integers in [0, high); `batch_size` counts the rows of this process."""
        uniform = self._draw(functools.partial(torch.rand, dtype=torch.float64), batch_size, *shape)
        return (uniform * high).long()

    def members(self, size: int, high: int, *, replacement: bool = False) -> Tensor:
        """Draw [size] integers in [0, high), the same on every process; all different without `replacement`."""
        options = {"generator": self.generator, "device": self.device}
        return torch.randint(high, (size,), **options) if replacement else torch.randperm(high, **options)[:size]

    def _draw(self, function: Callable[..., Tensor], batch_size: int, *shape: int) -> Tensor:
        size = batch_size * num_processes() if self.shared else batch_size
        numbers = function(size, *shape, generator=self.generator, device=self.device)
        return shard(numbers) if self.shared else numbers

    def state_dict(self) -> dict:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state`; on a different device type, later draws differ."""
        saved = state["generator"].cpu()
        if saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:
            self.generator.manual_seed(int(saved.long().sum()))
