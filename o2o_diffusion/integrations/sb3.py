"""Generated rows in Stable-Baselines3 (2.9), https://stable-baselines3.readthedocs.io: a replay buffer and a callback.

    SAC("MlpPolicy", env, replay_buffer_class=AugmentedReplayBuffer, replay_buffer_kwargs=dict(augmenter=augmenter))
    model.learn(50_000, callback=AugmentCallback())

For off-policy algorithms with vector observations and continuous actions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from o2o_diffusion.errors import InputError
from o2o_diffusion.integrations.augmenter import Augmenter, Detached
from o2o_diffusion.integrations.buffers import check_ratio, mixed, share, without_time_limits
from o2o_diffusion.types import Transitions


class AugmentedReplayBuffer(ReplayBuffer):
    """Replay buffer with a share `ratio` of generated rows in its batches, a number or a function of the step.

    The augmenter observes raw rows: not normalized, time limits not as terminations, actions in [-1, 1] as SB3 stores
    them. Generated rows are normalized like real ones (VecNormalize). They are in batches only, never in the buffer.
    Without an augmenter this is SB3's own buffer. Pickles leave the augmenter out: after `load_replay_buffer` or
    `SAC.load`, call `attach`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *args: Any,
        augmenter: Augmenter | Detached | None = None,
        ratio: float | Callable[[int], float] = 0.5,
        **kwargs: Any,
    ):
        for kind, space in (("observations", observation_space), ("actions", action_space)):
            if not isinstance(space, spaces.Box) or len(space.shape) != 1:
                hint = "; flatten them with gymnasium.wrappers.FlattenObservation" if kind == "observations" else ""
                raise InputError(f"AugmentedReplayBuffer: {kind} must be vectors (Box of one axis), got {space}{hint}")
        super().__init__(buffer_size, observation_space, action_space, *args, **kwargs)
        self.augmenter: Augmenter | None = None
        self.ratio: float | Callable[[int], float] = 0.0
        if augmenter is not None and not isinstance(augmenter, Detached):
            self.attach(augmenter, ratio)

    def attach(self, augmenter: Augmenter, ratio: float | Callable[[int], float] = 0.5) -> None:
        """Mix in rows of `augmenter` from now on; raises InputError if it has other dimensions."""
        theirs, ours = (augmenter.spec.observation_dim, augmenter.spec.action_dim), (*self.obs_shape, self.action_dim)
        if theirs != ours:
            raise InputError(
                f"the augmenter has observations [{theirs[0]}] and actions [{theirs[1]}], the environment has "
                f"[{ours[0]}] and [{ours[1]}]"
            )
        check_ratio(ratio, augmenter.step)
        self.augmenter, self.ratio = augmenter, ratio

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition per environment and pass them to the augmenter."""
        if self.augmenter is not None:
            terminations = without_time_limits(done, infos)
            self.augmenter.observe(obs, action, reward, next_obs, terminations, unit_actions=True)
        super().add(obs, next_obs, action, reward, done, infos)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Sample `batch_size` rows, normalized by `env`; all are real while there are no generated ones."""
        num_generated = 0 if self.augmenter is None else share(self.augmenter, self.ratio, batch_size)
        real = super().sample(max(1, batch_size - num_generated), env=env)
        if self.augmenter is None or not num_generated:
            return real
        generated = self.augmenter.sample(num_generated, unit_actions=True)
        return mixed(real, batch_size - num_generated, self._normalized(generated, env))

    def _normalized(self, generated: Transitions, env: VecNormalize | None) -> Transitions:
        """Normalize generated rows like real ones."""
        if env is None:
            return generated
        normalized = {
            "observations": self._normalize_obs(generated.observations.cpu().numpy(), env),
            "next_observations": self._normalize_obs(generated.next_observations.cpu().numpy(), env),
            "rewards": self._normalize_reward(generated.rewards.cpu().numpy(), env),
        }
        return generated.where(**{name: torch.as_tensor(array) for name, array in normalized.items()})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"augmenter": None, "ratio": 0.0}


class AugmentCallback(BaseCallback):
    """Refreshes the generator of the model's AugmentedReplayBuffer when due, by the model's step count."""

    @property
    def _buffer(self) -> Any:
        return getattr(self.model, "replay_buffer", None)  # load_replay_buffer replaces it

    def _init_callback(self) -> None:
        if not isinstance(self._buffer, AugmentedReplayBuffer):
            raise InputError("AugmentCallback needs a model with replay_buffer_class=AugmentedReplayBuffer")

    def _on_step(self) -> bool:
        augmenter = self._buffer.augmenter
        if augmenter is not None and augmenter.maybe_refresh(self.num_timesteps):
            self.logger.record("augmenter/refreshes", augmenter.refreshes)
            self.logger.record("augmenter/generated_rows", augmenter.num_generated)
        return True
