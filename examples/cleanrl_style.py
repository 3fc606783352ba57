"""SAC (Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905) in one file, with generated rows in half of each batch.

The four lines marked `# <-` are all the generator needs. This example shows usage, not a benefit: Pendulum is learned
at least as fast without them. About 80 seconds on one CPU core:

    python examples/cleanrl_style.py
"""

import copy
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from o2o_diffusion import Augmenter, TransitionSpec  # <- 1

SETTINGS = ["updates=1000", "refresh_updates=500", "first_refresh=1000", "refresh_interval=1000", "num_samples=10000"]
ENVIRONMENT, LIMIT, OBSERVATION_DIM, ACTION_DIM = "Pendulum-v1", 2.0, 3, 1
NUM_STEPS, LEARNING_STARTS, BATCH_SIZE = 4_000, 1_000, 256
DISCOUNT, TAU, LEARNING_RATE = 0.99, 0.005, 1e-3


class Batch(NamedTuple):
    """A batch; each field is [B, .]."""

    observations: torch.Tensor
    actions: torch.Tensor
    next_observations: torch.Tensor
    rewards: torch.Tensor
    terminations: torch.Tensor


class ReplayBuffer:
    """Stores real transitions and samples them uniformly."""

    def __init__(self, capacity: int, observation_dim: int, action_dim: int):
        widths = (observation_dim, action_dim, observation_dim, 1, 1)
        self.fields = Batch(*(torch.zeros(capacity, width) for width in widths))
        self.size = 0

    def add(self, observation, action, next_observation, reward, termination):
        """Store one transition."""
        for field, value in zip(self.fields, (observation, action, next_observation, reward, termination), strict=True):
            field[self.size] = torch.as_tensor(value)
        self.size += 1

    def sample(self, batch_size: int) -> Batch:
        """Draw rows with replacement."""
        rows = torch.randint(self.size, (batch_size,))
        return Batch(*(field[rows] for field in self.fields))


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """An MLP with two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


def q_values(critics: nn.ModuleList, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """[2, B, 1] values, one per critic."""
    return torch.stack([critic(torch.cat([observations, actions], 1)) for critic in critics])


def draw(actor: nn.Module, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample actions [B, action_dim] of the squashed Gaussian policy and log-probabilities [B, 1] before scaling."""
    mean, log_std = actor(observations).chunk(2, dim=-1)
    normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
    u = normal.rsample()
    log_prob = normal.log_prob(u) - 2 * (np.log(2) - u - F.softplus(-2 * u))  # log-density of tanh(u)
    return LIMIT * u.tanh(), log_prob.sum(-1, keepdim=True)


@torch.no_grad()
def score(actor: nn.Module, episodes: int = 10) -> float:
    """Mean return of the policy's mean actions, in a separate environment."""
    environment, total = gym.make(ENVIRONMENT), 0.0
    for seed in range(episodes):
        observation, ended = environment.reset(seed=1_000 + seed)[0], False
        while not ended:
            action = LIMIT * actor(torch.as_tensor(observation)).chunk(2, dim=-1)[0].tanh()
            observation, reward, terminated, truncated, _ = environment.step(action.numpy())
            total, ended = total + float(reward), terminated or truncated
    return total / episodes


def update(batch: Batch) -> None:
    """Take one gradient step on critics, actor and temperature."""
    alpha = log_alpha.exp().detach()
    with torch.no_grad():
        next_actions, next_log_prob = draw(actor, batch.next_observations)
        next_q = q_values(target_critics, batch.next_observations, next_actions).amin(0) - alpha * next_log_prob
        target_q = batch.rewards + DISCOUNT * (1 - batch.terminations) * next_q
    critic_loss = (q_values(critics, batch.observations, batch.actions) - target_q).square().mean(1).sum()
    critic_optimizer.zero_grad()
    critic_loss.backward()
    critic_optimizer.step()
    actions, log_prob = draw(actor, batch.observations)
    actor_loss = (alpha * log_prob - q_values(critics, batch.observations, actions).amin(0)).mean()
    actor_optimizer.zero_grad()
    actor_loss.backward()
    actor_optimizer.step()
    alpha_loss = -(log_alpha.exp() * (log_prob.detach() - ACTION_DIM)).mean()
    alpha_optimizer.zero_grad()
    alpha_loss.backward()
    alpha_optimizer.step()
    with torch.no_grad():
        for target, source in zip(target_critics.parameters(), critics.parameters(), strict=True):
            target.lerp_(source, TAU)


torch.manual_seed(0)
torch.set_num_threads(1)
environment = gym.make(ENVIRONMENT)
actor = mlp(OBSERVATION_DIM, 2 * ACTION_DIM)
critics = nn.ModuleList(mlp(OBSERVATION_DIM + ACTION_DIM, 1) for _ in range(2))
target_critics, log_alpha = copy.deepcopy(critics), torch.zeros(1, requires_grad=True)
actor_optimizer = torch.optim.Adam(actor.parameters(), LEARNING_RATE)
critic_optimizer = torch.optim.Adam(critics.parameters(), LEARNING_RATE)
alpha_optimizer = torch.optim.Adam([log_alpha], LEARNING_RATE)
replay_buffer = ReplayBuffer(NUM_STEPS, OBSERVATION_DIM, ACTION_DIM)
spec = TransitionSpec(OBSERVATION_DIM, ACTION_DIM)
augmenter = Augmenter(spec, settings=SETTINGS, action_low=-LIMIT, action_high=LIMIT)  # <- 2
replay_buffer = augmenter.wrap(replay_buffer, ratio=0.5)  # <- 3
print(f"before: {score(actor):.0f}")

environment.action_space.seed(0)
observation, _ = environment.reset(seed=0)
for step in range(1, NUM_STEPS + 1):
    action = environment.action_space.sample()
    if step > LEARNING_STARTS:
        action = draw(actor, torch.as_tensor(observation)[None])[0][0].detach().numpy()
    next_observation, reward, terminated, truncated, _ = environment.step(action)
    replay_buffer.add(observation, action, next_observation, reward, terminated)  # a time limit is not a termination
    observation = environment.reset()[0] if terminated or truncated else next_observation
    augmenter.maybe_refresh(step)  # <- 4
    if step > LEARNING_STARTS:
        update(replay_buffer.sample(BATCH_SIZE))

print(f"after {NUM_STEPS} steps: {score(actor):.0f}")
