"""Collect transitions: the main process steps the environment, every process stores the result."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng, broadcast, rank
from o2o_diffusion.environments.guard import GuardedEnvironment, StepFault
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Episode, Transitions, TransitionSpec


class Collector:
    """Steps the training environment with an exploring agent, and stores the transitions.

    An episode is determined by its reset seed and actions: each reset is seeded with `seed` + the episode number, and
    an interrupted episode is restored by replaying its actions. `rng` is the exploration stream, seeded with
    `exploration_seed`. Only the main process has an environment and explores. A call of the environment may take
    `timeout` seconds (0: no limit); a fault of it changes nothing here.
    """

    def __init__(
        self,
        environment: gym.Env | None,
        spec: TransitionSpec,
        *,
        seed: int,
        exploration_seed: int,
        timeout: float = 0.0,
        device: torch.device | str = "cpu",
    ):
        self.environment = None if environment is None else GuardedEnvironment(environment, timeout=timeout)
        self.spec, self.seed, self.device = spec, seed, device
        self.rng = ShardedRng(exploration_seed, device, shared=False)
        self.episode = -1
        self.last_return = float("nan")
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.rows: list[Tensor] = []

    @property
    def under_way(self) -> bool:
        """Whether an episode is in progress."""
        return bool(self.observations)

    def begin_episode(self) -> None:
        """Reset the environment; raises StepFault if that fails."""
        first = np.zeros(self.spec.observation_dim, dtype=np.float32)
        if self.environment is not None:
            first, _ = self.environment.reset(seed=self.seed + self.episode + 1)
        self.episode += 1
        self.observations = [broadcast(torch.from_numpy(first).to(self.device)).cpu().numpy()]
        self.actions, self.rewards, self.rows = [], [], []

    def step(self, agent: Agent, replay: Replay, *, random_actions: bool = False) -> Episode | None:
        """Take one exploration step and store it in the online pool; returns the episode if this step ended it.

        The action is computed from the environment's last observation or, with `random_actions`, drawn uniformly.
        Raises StepFault if the action or the environment's answer is faulty.
        """
        before = self.rng.state_dict()
        try:
            action, observation, reward, terminated, truncated = self._step_everywhere(agent, random_actions)
        except StepFault:
            self.rng.load_state_dict(before)
            raise
        tensors = [torch.from_numpy(array)[None] for array in (self.observations[-1], action, observation)]
        batch = Transitions.create(
            tensors[0], tensors[1], torch.tensor([reward]), tensors[2], torch.tensor([float(terminated)])
        )
        self.rows.append(replay.online.append(batch.to(self.device), episode=self.episode, first_step=len(self.rows)))
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(reward)
        if not (terminated or truncated):
            return None
        episode = Episode(
            np.stack(self.observations), np.stack(self.actions), np.array(self.rewards, dtype=np.float32), terminated
        )
        replay.end_episode(episode, torch.cat(self.rows))
        self.last_return = float(episode.rewards.sum())
        self.observations = []
        return episode

    def _step_everywhere(self, agent: Agent, random_actions: bool) -> tuple[np.ndarray, np.ndarray, float, bool, bool]:
        """Step on the main process; every process gets action, next observation, reward, terminated, truncated."""
        observation_dim, action_dim = self.spec.observation_dim, self.spec.action_dim
        message = torch.zeros(action_dim + observation_dim + 3, device=self.device)
        if rank() == 0:
            assert self.environment is not None
            action = self._act(agent, random_actions)
            next_observation, reward, terminated, truncated, _ = self.environment.step(action)
            flat = np.concatenate([action, next_observation, [reward, terminated, truncated]]).astype(np.float32)
            message = torch.from_numpy(flat).to(self.device)
        parts = np.split(broadcast(message).cpu().numpy(), [action_dim, action_dim + observation_dim])
        action, next_observation, last = parts
        return action, next_observation, float(last[0]), bool(last[1]), bool(last[2])

    def _act(self, agent: Agent, random_actions: bool) -> np.ndarray:
        """[action_dim] exploration action for the last observation."""
        if random_actions:
            action = 2 * self.rng.uniform(1, self.spec.action_dim) - 1
        else:
            action = agent.act(torch.from_numpy(self.observations[-1])[None].to(self.device), rng=self.rng)
        return action[0].clamp(-1.0, 1.0).cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Episode number, actions and rows of the current episode, and the exploration stream."""
        return {
            "rng": self.rng.state_dict(),
            "episode": self.episode,
            "last_return": self.last_return,
            "observations": torch.from_numpy(np.array(self.observations, dtype=np.float32)),
            "actions": torch.from_numpy(np.array(self.actions, dtype=np.float32)),
            "rewards": list(self.rewards),
            "rows": [int(row) for row in self.rows],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; raises ValueError if the environment does not reproduce its observations."""
        self.rng.load_state_dict(state["rng"])
        self.episode, self.last_return = state["episode"], state["last_return"]
        self.observations, self.actions = list(state["observations"].numpy()), list(state["actions"].numpy())
        self.rewards = list(state["rewards"])
        self.rows = [torch.tensor([row], device=self.device) for row in state["rows"]]
        if not self.under_way or self.environment is None:
            return
        observation, _ = self.environment.reset(seed=self.seed + self.episode)
        for action in self.actions:
            observation, *_ = self.environment.step(action)
        if not np.array_equal(observation, self.observations[-1]):
            raise ValueError("the environment does not repeat the interrupted episode; its state cannot be restored")
