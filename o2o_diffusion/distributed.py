"""One algorithm on any number of processes: equal draws everywhere, each process keeps its rows, results are averaged.

Nothing here needs to be set up: without a process group there is one process and every function is the identity.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the main process, which steps the environment, evaluates and writes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class Sliceable(Protocol):
    """A tensor, or a batch of tensors."""

    def __getitem__(self, rows: slice, /) -> Any: ...


Rows = TypeVar("Rows", bound=Sliceable)


def shard(batch: Rows) -> Rows:
    """This process's rows `[rank::N]` of a batch that every process drew alike."""
    return batch[rank() :: num_processes()] if num_processes() > 1 else batch


def average(tensors: Sequence[Tensor]) -> None:
    """Average `tensors` over processes, in place, in one message."""
    if num_processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= num_processes()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over all processes, detached: for statistics that enter a loss non-linearly."""
    result = values.detach().mean()
    average([result])
    return result


def broadcast(tensor: Tensor) -> Tensor:
    """`tensor` of the main process, in place."""
    if num_processes() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather(part: Tensor) -> Tensor:
    """The whole batch of which each process holds `[rank::N]`, on every process; parts are of equal length."""
    if num_processes() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(num_processes())]
    dist.all_gather(parts, part.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def agree(decision: bool, device: torch.device | str = "cpu") -> bool:
    """The main process's decision, on every process."""
    return bool(broadcast(torch.tensor(int(decision), device=device))) if num_processes() > 1 else decision


class Noise:
    """A component's own random numbers: equally seeded on every process, each process keeps its rows.

    The draws of N processes together are the draws of one process with the whole batch, so the algorithm does not
    depend on N. What one process does alone, such as acting, draws with `shared=False`. Has `state_dict` /
    `load_state_dict` for exact resumption.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", *, shared: bool = True):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.shared = self.generator.device, shared

    def normal(self, batch_size: int, *shape: int) -> Tensor:
        """[batch_size, *shape] standard normal numbers; `batch_size` is this process's."""
        return self._draw(torch.randn, batch_size, *shape)

    def uniform(self, batch_size: int, *shape: int) -> Tensor:
        """[batch_size, *shape] uniform numbers in [0, 1); `batch_size` is this process's."""
        return self._draw(torch.rand, batch_size, *shape)

    def _draw(self, function, batch_size: int, *shape: int) -> Tensor:
        size = batch_size * num_processes() if self.shared else batch_size
        numbers = function(size, *shape, generator=self.generator, device=self.device)
        return shard(numbers) if self.shared else numbers

    def state_dict(self) -> dict:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`; on another kind of device the numbers that follow are others."""
        saved = state["generator"].cpu()
        if saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:
            self.generator.manual_seed(int(saved.long().sum()))
