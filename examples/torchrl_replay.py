"""TorchRL's TD3 on Pendulum-v1 with generated rows in its replay buffer; two minutes on one core.

    pip install '.[torchrl]' && python examples/torchrl_replay.py --ratio 0.5

`--ratio 0` trains on real rows only.
"""

import argparse

import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import ActionScaling, Compose, GymEnv, InitTracker, TransformedEnv
from torchrl.modules import MLP, Actor, AdditiveGaussianModule, ValueOperator
from torchrl.objectives import SoftUpdate, TD3Loss

from o2o_diffusion import Augmenter, TransitionSpec
from o2o_diffusion.integrations.torchrl import augment_transform

SETTINGS = ["updates=1000", "refresh_updates=500", "width=128", "first_refresh=1000", "refresh_interval=1000"]
"""A small generator: CFDG's defaults are for larger tasks."""


class Critic(nn.Module):
    """Q(s, a)."""

    def __init__(self):
        super().__init__()
        self.body = MLP(in_features=4, out_features=1, num_cells=[64, 64], activation_class=nn.ReLU)

    def forward(self, observation, action):
        """[B, 1] values."""
        return self.body(torch.cat([observation, action], dim=-1))


def make_env() -> TransformedEnv:
    """Pendulum with actions in [-1, 1]; `InitTracker` marks first steps for the exploration noise."""
    return TransformedEnv(GymEnv("Pendulum-v1"), Compose(ActionScaling(), InitTracker()))


def evaluate(env: TransformedEnv, actor: Actor, episodes: int) -> float:
    """Mean return of the deterministic policy."""
    with torch.no_grad():
        returns = [env.rollout(200, actor)["next", "reward"].sum() for _ in range(episodes)]
    return float(torch.stack(returns).mean())


def train(ratio: float, steps: int, seed: int) -> float:
    """Train for `steps` environment steps with one update each; returns the mean return of 20 episodes."""
    torch.manual_seed(seed)
    env, test_env = make_env(), make_env()
    env.set_seed(seed), test_env.set_seed(1_000 + seed)
    network = MLP(in_features=3, out_features=1, num_cells=[64, 64], activation_class=nn.ReLU)
    actor = Actor(nn.Sequential(network, nn.Tanh()))
    critic = ValueOperator(Critic(), in_keys=["observation", "action"])
    loss = TD3Loss(actor, critic, action_spec=env.action_spec, num_qvalue_nets=2)
    loss.make_value_estimator(gamma=0.98)
    targets = SoftUpdate(loss, tau=0.01)
    actor_optimizer = torch.optim.Adam(loss.actor_network_params.flatten_keys().values(), lr=1e-3)
    critic_optimizer = torch.optim.Adam(loss.qvalue_network_params.flatten_keys().values(), lr=1e-3)

    # starts without data; `maybe_refresh` resamples its pool whenever a refresh is due
    augmenter = Augmenter(TransitionSpec(observation_dim=3, action_dim=1), settings=SETTINGS, seed=seed)
    replay_buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(steps), batch_size=128, transform=augment_transform(augmenter, ratio)
    )

    exploration = TensorDictSequential(actor, AdditiveGaussianModule(env.action_spec, sigma_init=0.2, sigma_end=0.2))
    collector = Collector(env, exploration, frames_per_batch=50, total_frames=steps, init_random_frames=1_000)
    for block, rollout in enumerate(collector, start=1):
        replay_buffer.extend(rollout)
        if ratio > 0:
            augmenter.maybe_refresh(50 * block)
        for update in range(50 if 50 * block >= 1_000 else 0):
            batch = replay_buffer.sample()
            critic_optimizer.zero_grad()
            loss.value_loss(batch)[0].backward()
            critic_optimizer.step()
            if update % 2:
                actor_optimizer.zero_grad()
                loss.actor_loss(batch)[0].backward()
                actor_optimizer.step()
                targets.step()
        if 50 * block % 1_000 == 0:
            print(f"step {50 * block}: return {evaluate(test_env, actor, 5):.0f}", flush=True)
    collector.shutdown()
    return evaluate(test_env, actor, 20)


def main() -> None:
    """Train and print evaluations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of generated rows in a batch")
    parser.add_argument("--steps", type=int, default=5_000, help="environment steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = train(arguments.ratio, arguments.steps, arguments.seed)
    print(f"ratio {arguments.ratio}: mean return {result:.0f} after {arguments.steps} steps")


if __name__ == "__main__":
    main()
