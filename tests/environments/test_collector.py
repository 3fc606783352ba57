import numpy as np
import pytest
import torch

from o2o_diffusion.environments.collector import Interaction
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import EnvironmentSpec, Source, TransitionSpec

SPEC = TransitionSpec(11, 3)


class Constant:
    """Acts by its observation alone, so that equal states give equal actions."""

    def act(self, observations, *, deterministic=False):
        return torch.sin(observations[:, :3] * 3)

    def values(self, observations, actions):
        return torch.zeros(len(observations))

    def log_prob(self, observations, actions):
        return torch.zeros(len(observations))


def interaction() -> tuple[Interaction, Replay]:
    environment = make_environment(EnvironmentSpec("Hopper-v5"))
    return Interaction(environment, SPEC, seed=3), Replay(SPEC, {Source.ONLINE: 500}, discount=0.9)


def collect(part: Interaction, replay: Replay, steps: int) -> int:
    ended = 0
    for _ in range(steps):
        if not part.under_way:
            part.begin_episode()
        ended += part.step(Constant(), replay) is not None
    return ended


def test_an_interrupted_episode_goes_on_bit_for_bit():
    whole, whole_replay = interaction()
    collect(whole, whole_replay, 60)
    first, replay = interaction()
    collect(first, replay, 37)
    second, other = interaction()
    other.load_state_dict(replay.state_dict())
    second.load_state_dict(first.state_dict())
    collect(second, other, 23)
    for name, field in whole_replay.online.all().__dict__.items():
        assert torch.equal(field, getattr(other.online.all(), name)), name


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
    part = Interaction(
        make_environment(EnvironmentSpec("Pendulum-v1", max_episode_steps=5)), TransitionSpec(3, 1), seed=0
    )
    replay = Replay(TransitionSpec(3, 1), {Source.ONLINE: 10})

    class Still(Constant):
        def act(self, observations, *, deterministic=False):
            return torch.zeros(len(observations), 1)

    part.begin_episode()
    ended = [part.step(Still(), replay) for _ in range(5)]
    assert ended[-1] is not None and not ended[-1].terminated and np.all(replay.online.all().terminations.numpy() == 0)
