"""Generated transitions in TorchRL (Bou et al., 2023), https://arxiv.org/abs/2306.00577.

    replay_buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(100_000), batch_size=256)
    replay_buffer.append_transform(augment_transform(augmenter, ratio=0.5))
    replay_buffer.extend(rollout)  # observed by the augmenter
    loss(replay_buffer.sample())  # half of the rows are generated
    augmenter.maybe_refresh(step)

The buffer is still TorchRL's, with any storage and any sampler of single transitions.
"""

from collections.abc import Callable, Iterable

import torch
from tensordict import TensorDictBase  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torchrl.envs.transforms import Transform  # pyright: ignore[reportMissingImports]

from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.augmenter import Augmenter
from o2o_diffusion.integrations.buffers import check_ratio, share

Key = str | tuple[str, ...]

REQUIRED: dict[Key, str] = {
    "observation": "observations",
    "action": "actions",
    ("next", "observation"): "next_observations",
    ("next", "reward"): "rewards",
    ("next", "terminated"): "terminations",
}
"""TorchRL key of each field; ("next", "done") also holds the terminations of generated rows."""

FALSE: tuple[Key, ...] = ("done", "terminated", "truncated", ("next", "truncated"), "is_init", ("next", "is_init"))
"""Keys that are False in generated rows: they don't start an episode, and they don't reach a time limit."""

BOOKKEEPING = ("index", "index_generation", "td_error", "priority_weight", "collector")
"""Keys with sampling and collection metadata of a real row, kept if a generated row replaces it."""


class AugmentTransform(Transform):
    """Replaces the last rows of sampled batches with generated ones; observes the rows added to the buffer.

    The tensors of a mixed batch are new: neither the storage nor the sampled batch is modified. Rows have TorchRL's
    keys, and "generated" [B], bool. Indices and importance weights remain those of the replaced rows, so exclude
    generated rows from priority updates: `update_tensordict_priority(batch[~batch["generated"]])`.
    """

    def __init__(self, augmenter: Augmenter, ratio: float | Callable[[int], float]):
        check_ratio(ratio, augmenter.step)
        super().__init__()
        self.augmenter, self.ratio = augmenter, ratio

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Mix generated rows into a sampled batch [B]; a single row [] is returned as it is."""
        if not tensordict.ndim:
            return tensordict
        if tensordict.ndim > 1:
            raise InputError(f"a batch of shape {list(tensordict.shape)} holds sequences; generated rows are single")
        _check_keys(tensordict)
        num_generated = share(self.augmenter, self.ratio, len(tensordict))
        num_real = len(tensordict) - num_generated
        mixture = tensordict.copy()
        mixture["generated"] = torch.arange(len(tensordict), device=tensordict.device) >= num_real
        if not num_generated:
            return mixture
        generated = self.augmenter.sample(num_generated)
        columns = {key: getattr(generated, name) for key, name in REQUIRED.items()}
        columns[("next", "done")] = generated.terminations
        columns |= {key: torch.zeros(num_generated) for key in FALSE}
        for key, column in columns.items():
            real = tensordict.get(key, None)
            if real is not None:
                mixture.set(key, _joined(key, real[:num_real], column))
        return mixture

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Observe one transition [] or many [...]; called by `add` and `extend`."""
        _check_required(tensordict)
        rows = tensordict.reshape(-1)
        self.augmenter.observe(**{name: rows[key] for key, name in REQUIRED.items()})
        return tensordict


def augment_transform(augmenter: Augmenter, ratio: float | Callable[[int], float] = 0.5) -> AugmentTransform:
    """Transform for `TensorDictReplayBuffer(transform=...)` that mixes generated rows into sampled batches.

    Of B sampled rows, round(ratio * B) are generated, none while the pool is empty; `ratio` in [0, 1] may be a function
    of the step last passed to `maybe_refresh`. Rows added to the buffer are observed as online data: extend it with an
    offline dataset first, then `append_transform`. Put this transform before those that rescale observations or
    rewards. `replay_buffer[:]` is mixed too; `replay_buffer.storage` is not.

    Raises InputError if a batch has keys that generated rows can't have (remove them with an `ExcludeTransform` in
    front), lacks a required key, or has other widths than the augmenter.
    """
    return AugmentTransform(augmenter, ratio)


def _joined(key: Key, real: Tensor, generated: Tensor) -> Tensor:
    """Concatenate to [num_real + num_generated, ...] with the shape, dtype and device of `real`."""
    width, expected = real.shape[1:].numel(), generated.shape[1:].numel()
    if width != expected:
        raise InputError(f"the buffer's {_in_words([key])} has width {width}; the augmenter's has {expected}")
    return torch.cat([real, generated.reshape(-1, *real.shape[1:]).to(real.device, real.dtype)])


def _check_keys(tensordict: TensorDictBase) -> None:
    """Raise InputError unless generated rows can have all keys of `tensordict`."""
    _check_required(tensordict)
    known = {*REQUIRED, ("next", "done"), *FALSE, "generated"}
    keys = tensordict.keys(include_nested=True, leaves_only=True)
    extra = [key for key in keys if key not in known and (key if isinstance(key, str) else key[0]) not in BOOKKEEPING]
    if extra:
        raise InputError(
            f"generated rows have no {_in_words(extra)}; "
            f"put torchrl's ExcludeTransform({_in_words(extra)}) before this transform"
        )


def _check_required(tensordict: TensorDictBase) -> None:
    """Raise InputError unless `tensordict` holds a transition."""
    missing = [key for key in REQUIRED if tensordict.get(key, None) is None]
    if missing:
        raise InputError(f"the tensordict has no {_in_words(missing)}; generated rows replace whole transitions")


def _in_words(keys: Iterable[Key]) -> str:
    """Format keys as Python literals, on one line."""
    return ", ".join(map(repr, sorted(keys, key=lambda key: (isinstance(key, tuple), key))))
