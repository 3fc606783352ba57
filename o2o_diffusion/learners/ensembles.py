"""What an ensemble of critics adds to a learner: target rules, and choosing among candidate actions by their values."""

import torch
from torch import Tensor


def weighted_min_pair(q: Tensor, dim: int) -> Tensor:
    """Mean over all pairs of members of the pair's minimum, along `dim` of size N (ENOTO).

    The closed form sorts the members: the i-th smallest of N is the minimum of N - i pairs of N (N - 1) / 2.
    """
    size = q.shape[dim]
    weights = 2 * torch.arange(size - 1, -1, -1, device=q.device, dtype=q.dtype) / (size * (size - 1))
    shape = [1] * q.ndim
    shape[dim] = size
    return (q.sort(dim).values * weights.view(shape)).sum(dim)


def twice(values: Tensor, dim: int) -> Tensor:
    """Repeat each of the N entries along `dim`, one per agent, for its two critics: 2N entries."""
    return values.repeat_interleave(2, dim)


def pair_minima(q: Tensor) -> Tensor:
    """[..., 2N, B] -> [..., N, B], minima over members 2i and 2i + 1, the two critics of agent i."""
    return torch.minimum(q[..., ::2, :], q[..., 1::2, :])


def best(actions: Tensor, scores: Tensor) -> Tensor:
    """[B, N, A] candidate actions, [B, N] scores -> [B, A], the actions with the highest scores."""
    return pick(actions, scores.argmax(-1))


def drawn(actions: Tensor, logits: Tensor, uniform: Tensor) -> Tensor:
    """[B, N, A], [B, N], `uniform` [B] in [0, 1) -> [B, A], drawn with probabilities softmax(logits)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    choice = (cumulative < uniform[..., None]).sum(-1)
    return pick(actions, choice.clamp(max=logits.shape[-1] - 1))


def pick(actions: Tensor, choice: Tensor) -> Tensor:
    """[B, N, A], [B] int64 -> [B, A]."""
    return actions.gather(-2, choice[..., None, None].expand(*choice.shape, 1, actions.shape[-1])).squeeze(-2)
