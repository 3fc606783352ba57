import numpy as np
import pytest
import torch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.environments.collector import Collector
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import EnvironmentSpec, Source, TransitionSpec

SPEC = TransitionSpec(11, 3)
PENDULUM = TransitionSpec(3, 1)


class Constant:
    """Acts by its observation alone, so that equal states give equal actions."""

    def act(self, observations, *, deterministic=False, rng=None):
        return torch.sin(observations[:, :3] * 3)

    def values(self, observations, actions):
        return torch.zeros(len(observations))

    def log_prob(self, observations, actions):
        return torch.zeros(len(observations))


class Exploring(Constant):
    """Adds noise of the stream that it is given."""

    def act(self, observations, *, deterministic=False, rng=None):
        assert not deterministic and rng is not None
        actions = super().act(observations)
        return (actions + 0.3 * rng.normal(*actions.shape)).clamp(-1, 1)


def interaction(exploration_seed: int = 5) -> tuple[Collector, Replay]:
    environment = make_environment(EnvironmentSpec("Hopper-v5"))
    collector = Collector(environment, SPEC, seed=3, exploration_seed=exploration_seed)
    return collector, Replay(SPEC, {Source.ONLINE: 500}, discount=0.9)


def pendulum(exploration_seed: int, steps: int = 5) -> tuple[Collector, Replay]:
    environment = make_environment(EnvironmentSpec("Pendulum-v1", max_episode_steps=steps))
    collector = Collector(environment, PENDULUM, seed=0, exploration_seed=exploration_seed)
    return collector, Replay(PENDULUM, {Source.ONLINE: 1_000})


def collect(part: Collector, replay: Replay, steps: int, agent=None, *, random_actions: bool = False) -> int:
    agent = agent or Constant()
    ended = 0
    for _ in range(steps):
        if not part.under_way:
            part.begin_episode()
        ended += part.step(agent, replay, random_actions=random_actions) is not None
    return ended


@pytest.mark.parametrize("random_actions", [False, True])
@pytest.mark.parametrize("agent", [Constant(), Exploring()], ids=["constant", "exploring"])
def test_an_interrupted_episode_goes_on_bit_for_bit(agent, random_actions):
    whole, whole_replay = interaction()
    collect(whole, whole_replay, 60, agent, random_actions=random_actions)
    first, replay = interaction()
    collect(first, replay, 37, agent, random_actions=random_actions)
    second, other = interaction(exploration_seed=6)
    other.load_state_dict(replay.state_dict())
    second.load_state_dict(first.state_dict())
    collect(second, other, 23, agent, random_actions=random_actions)
    for name, field in whole_replay.online.all().__dict__.items():
        torch.testing.assert_close(field, getattr(other.online.all(), name), rtol=0, atol=0, equal_nan=True, msg=name)
    assert torch.equal(whole.rng.uniform(4), second.rng.uniform(4))


def test_actions_depend_on_the_exploration_seed_only():
    drawn = []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(global_seed)
        part, replay = interaction(seed)
        collect(part, replay, 20, Exploring())
        drawn.append(replay.online.all().actions)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_random_actions_are_uniform_and_of_the_collectors_own_stream():
    part, replay = pendulum(exploration_seed=5, steps=200)
    collect(part, replay, 1_000, random_actions=True)
    actions, rng = replay.online.all().actions, ShardedRng(5)
    assert torch.equal(actions, torch.cat([2 * rng.uniform(1, 1) - 1 for _ in range(1_000)]))
    counts = torch.histc(actions, 10, -1, 1)
    assert counts.sum() == 1_000 and counts.min() > 70 and counts.max() < 130
    again, other = pendulum(exploration_seed=5, steps=200)
    collect(again, other, 30, random_actions=True)
    assert torch.equal(other.online.all().actions, actions[:30])


def test_returns_are_filled_when_an_episode_ends_and_falls_are_terminations():
    part, replay = interaction()
    while collect(part, replay, 1) == 0:
        assert torch.isinf(replay.online.all().returns).all()
    rows = replay.online.all()
    assert rows.terminations.tolist() == [0.0] * (len(rows) - 1) + [1.0]
    assert rows.returns[-1] == rows.rewards[-1]
    assert rows.returns[-2] == pytest.approx(float(rows.rewards[-2] + 0.9 * rows.rewards[-1]), rel=1e-5)
    assert torch.equal(rows.next_observations[:-1], rows.observations[1:])


def test_an_environment_that_does_not_repeat_itself_is_refused():
    part, replay = interaction()
    collect(part, replay, 5)
    state = part.state_dict()
    state["observations"][-1] += 1
    again, _ = interaction()
    with pytest.raises(ValueError, match="does not repeat"):
        again.load_state_dict(state)


def test_a_time_limit_is_no_termination():
    part, replay = pendulum(exploration_seed=0)

    class Still(Constant):
        def act(self, observations, *, deterministic=False, rng=None):
            return torch.zeros(len(observations), 1)

    part.begin_episode()
    ended = [part.step(Still(), replay) for _ in range(5)]
    assert ended[-1] is not None and not ended[-1].terminated and np.all(replay.online.all().terminations.numpy() == 0)


def test_rows_know_their_episode_and_step_and_the_last_return_is_a_plain_sum():
    part, replay = pendulum(exploration_seed=0)
    assert collect(part, replay, 10, random_actions=True) == 2
    assert replay.online.episodes[:10].tolist() == [0] * 5 + [1] * 5
    assert replay.online.steps[:10].tolist() == [*range(5), *range(5)]
    assert part.last_return == pytest.approx(replay.online.all().rewards[5:].sum().item(), rel=1e-5)
    again, _ = pendulum(exploration_seed=1)
    again.load_state_dict(part.state_dict())
    assert again.last_return == part.last_return
