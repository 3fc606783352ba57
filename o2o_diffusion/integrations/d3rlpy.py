"""Generated transitions in d3rlpy (Seno and Imai, 2022), https://arxiv.org/abs/2111.03788, in its own replay buffers.

    augmenter = Augmenter.fit(to_arrays(real))
    mixture = mixed(real, augmenter, 100_000, ratio=0.5)
    algorithm.build_with_dataset(real)  # building draws one transition, and d3rlpy's mixtures draw only batches
    algorithm.fit(mixture, n_steps=10_000)

d3rlpy stores episodes and extracts transitions from them. A generated transition that terminates is an episode of one
step. Any other is an episode of two steps, and d3rlpy draws only the first. The second step holds the next observation,
with NaN as its unknown action and -inf as its unknown reward, so that Cal-QL's max(q, return) is q. Of d3rlpy's
algorithms, only ReBRAC reads next actions: its losses are NaN on generated rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from d3rlpy.constants import ActionSpace  # pyright: ignore[reportMissingImports]
from d3rlpy.dataset import (  # pyright: ignore[reportMissingImports]
    BufferProtocol,
    Episode,
    EpisodeBase,
    MixedReplayBuffer,
    PartialTrajectory,
    ReplayBuffer,
    ReplayBufferBase,
    Signature,
    TrajectorySlicerProtocol,
    TransitionPickerProtocol,
)
from torch import Tensor

from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.augmenter import Augmenter
from o2o_diffusion.integrations.buffers import check_ratio
from o2o_diffusion.types import UNKNOWN_RETURN, Transitions, TransitionSpec


class GeneratedEpisodes(Sequence[Episode]):
    """One pseudo-episode per transition, created on access: a million of them would take 0.7 GB."""

    def __init__(self, batch: Transitions):
        self.observations = _steps(batch.observations, batch.next_observations)
        self.actions = _steps(batch.actions, np.nan)
        self.rewards = _steps(batch.rewards[:, None], UNKNOWN_RETURN)
        self.terminated = batch.terminations.bool().tolist()

    def __len__(self) -> int:
        return len(self.terminated)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        terminated = self.terminated[index]
        steps = slice(1 if terminated else 2)
        return Episode(
            self.observations[index, steps], self.actions[index, steps], self.rewards[index, steps], terminated
        )


class GeneratedBuffer(BufferProtocol):
    """d3rlpy's storage: maps each transition to its pseudo-episode and its step there."""

    def __init__(self, batch: Transitions):
        self._episodes = GeneratedEpisodes(batch)

    def append(self, episode: EpisodeBase, index: int) -> None:
        """Raise InputError: real transitions belong in the real buffer."""
        raise InputError("a buffer of generated transitions takes no others; append to the real one, or to the mixture")

    @property
    def episodes(self) -> Sequence[EpisodeBase]:
        """One pseudo-episode per transition."""
        return self._episodes

    @property
    def transition_count(self) -> int:
        """Number of transitions."""
        return len(self._episodes)

    def __getitem__(self, index: int) -> tuple[EpisodeBase, int]:
        return self._episodes[index], 0


class GeneratedReplayBuffer(ReplayBuffer):
    """d3rlpy replay buffer of single transitions, without trajectories."""

    def sample_trajectory(self, length: int) -> PartialTrajectory:
        """Raise InputError: single transitions have no history."""
        raise InputError("generated transitions are not trajectories; train d3rlpy's transformers on the real buffer")


def to_d3rlpy(
    augmenter: Augmenter,
    n: int,
    *,
    transition_picker: TransitionPickerProtocol | None = None,
    trajectory_slicer: TrajectorySlicerProtocol | None = None,
) -> ReplayBuffer:
    """Create a replay buffer of `n` transitions from `augmenter`, float32, with actions in the augmenter's bounds.

    They are drawn once, from its pool, with replacement: make the pool large enough, e.g. with
    `settings=["num_samples=100000"]`. Later refreshes don't change the buffer. `transition_picker` and
    `trajectory_slicer` are d3rlpy's; None: its basic ones.
    """
    spec, dtype = augmenter.spec, np.dtype(np.float32)
    return GeneratedReplayBuffer(
        GeneratedBuffer(augmenter.sample(n)),
        transition_picker=transition_picker,
        trajectory_slicer=trajectory_slicer,
        observation_signature=Signature([dtype], [(spec.observation_dim,)]),
        action_signature=Signature([dtype], [(spec.action_dim,)]),
        reward_signature=Signature([dtype], [(1,)]),
        action_space=ActionSpace.CONTINUOUS,
        action_size=spec.action_dim,
    )


def mixed(real: ReplayBufferBase, augmenter: Augmenter, n: int, ratio: float) -> MixedReplayBuffer:
    """Mix `real` with `n` generated transitions in a d3rlpy mixture, a share `ratio` in [0, 1] of every batch.

    The last ceil(ratio * B) rows of a batch of B are generated. Appended episodes go to `real`. By default, evaluators
    and scalers iterate over all episodes of the mixture, including generated ones: pass them `real.episodes`. Raises
    InputError if `real` and the augmenter have different dimensions, or if `ratio` is out of range.
    """
    share = check_ratio(ratio, augmenter.step)
    _check_dimensions(real, augmenter.spec)
    generated = to_d3rlpy(
        augmenter, n, transition_picker=real.transition_picker, trajectory_slicer=real.trajectory_slicer
    )
    # d3rlpy takes int((1 - share) * B) real rows: for 0.9 and 10 it must be 1, not int(0.9999999999999998) = 0
    return MixedReplayBuffer(real, generated, secondary_mix_ratio=max(0.0, share - 1e-9))


def to_arrays(real: ReplayBufferBase) -> dict[str, np.ndarray]:
    """Convert the transitions of `real`, in the order of its episodes, to arrays for `Augmenter.fit`.

    Shapes: observations, next_observations [N, observation_dim], actions [N, action_dim], rewards, terminations [N].
    d3rlpy does not store the observation after a termination, which no learner reads; the last observation is repeated.
    """
    parts = []
    for episode in real.episodes:
        size, observations = episode.transition_count, np.asarray(episode.observations)
        following = np.concatenate([observations[1:], observations[-1:]])
        terminations = np.zeros(size, np.float32)
        terminations[-1:] = episode.terminated
        parts.append((observations, episode.actions, episode.rewards[:, 0], following, terminations))
        parts[-1] = tuple(column[:size] for column in parts[-1])
    if not parts:
        raise InputError("the d3rlpy buffer holds no episodes")
    names = ("observations", "actions", "rewards", "next_observations", "terminations")
    return {name: np.concatenate(columns) for name, columns in zip(names, zip(*parts, strict=True), strict=True)}


def _steps(first: Tensor, second: Tensor | float) -> np.ndarray:
    """[N, 2, width] pairs of steps from the rows [N, width] of `first` and `second`."""
    rows = first.detach().cpu().numpy()
    other = second.detach().cpu().numpy() if isinstance(second, Tensor) else np.full_like(rows, second)
    return np.stack([rows, other], axis=1)


def _check_dimensions(real: ReplayBufferBase, spec: TransitionSpec) -> None:
    """Raise InputError unless `real` has vector observations and continuous actions with the widths of `spec`."""
    info = real.dataset_info
    shapes = [tuple(shape) for shape in info.observation_signature.shape]
    if info.action_space != ActionSpace.CONTINUOUS:
        raise InputError("the d3rlpy buffer holds discrete actions; generated ones are continuous")
    if shapes != [(spec.observation_dim,)] or info.action_size != spec.action_dim:
        raise InputError(
            f"the d3rlpy buffer has observations {shapes} and {info.action_size} actions; "
            f"the augmenter was made for {spec}"
        )
