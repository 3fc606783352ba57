"""Can a learner be stacked? Decided by the error of stacked updates, before any work."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from o2o_diffusion.distributed import shard
from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.stacking import Stack, tensors
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.schedule import Phase
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.plan import num_updates, trial_replay
from o2o_diffusion.types import Transitions

MAX_ERROR = 1e-3
"""Relative error of a network or of an optimizer's moments after one update."""


def check_stacking(runs: Sequence[Run]) -> None:
    """Raise InputError unless stacked updates equal single ones, in each phase; uses throwaway learners and samplers.

    All processes must call it.
    """
    singles, stacked = ([run.component("learner") for run in runs] for _ in range(2))
    samplers, replay = [run.component("sampler") for run in runs], trial_replay(runs[0].loop.replay)
    for phase in runs[0].loop.phases:
        draws = [shard(sampler.sample(replay, phase.shares, phase.batch_size)) for sampler in samplers]
        batches = [replay.scaled(replay.gather(draw)) for draw in draws]
        for learner in (*singles, *stacked):
            learner.begin_phase(phase, replay)
        if num_updates(phase):
            _check_phase(phase, singles, stacked, batches)


def _check_phase(phase: Phase, singles: Sequence[Any], stacked: Sequence[Any], batches: Sequence[Transitions]) -> None:
    for learner, batch in zip(singles, batches, strict=True):
        learner.update(batch)
    try:
        Stack(stacked).update(batches)
        errors = [stacking_error(*pair) for pair in zip(singles, stacked, strict=True)]
    except Exception as error:  # whatever a learner of one seed does with batches of several
        raise _refusal(singles[0], f"in phase '{phase.name}': {str(error).splitlines()[0]}") from error
    if max(errors) > MAX_ERROR:
        raise _refusal(singles[0], f"because its updates in phase '{phase.name}' would be different")


def stacking_error(single: Any, stacked: Any) -> float:
    """The largest relative difference of a network, or of an optimizer's moments, between two learners."""
    parts = [name for name, part in vars(single).items() if isinstance(part, (nn.Module, Optimizer))]
    return max(_difference(getattr(single, name), getattr(stacked, name)) for name in parts)


@torch.no_grad()
def _difference(part: nn.Module | Optimizer, other: nn.Module | Optimizer) -> float:
    one, two = (torch.cat([tensor.flatten() for tensor in tensors(p)]) for p in (part, other))
    return float((one - two).norm() / one.norm().clamp(min=1e-12))


def _refusal(learner: Any, why: str) -> InputError:
    return InputError(f"setting 'num_seeds': {type(learner).__name__} can't be stacked {why}; set num_seeds=1")
