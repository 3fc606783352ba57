"""Outcomes of a world that is known: s' = s + 0.5 a offline, s' = s - 0.5 a online; an episode ends where s'[0] > 1."""

import pytest
import torch
from builders import SPEC, LinearPolicy, raw_batch, refresh

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.onpolicy import OnPolicy
from o2o_diffusion.networks.ensemble import RegressionEnsemble
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions

SMALL = {"width": 32, "updates": 300, "batch_size": 256, "actions": "data"}
EFFECT = {Source.OFFLINE: 0.5, Source.ONLINE: -0.5}


def outcome(batch: Transitions, source: Source) -> Transitions:
    """The true outcome of states and actions in the world of `source`."""
    following = batch.observations.clone()
    following[:, :2] += EFFECT[source] * batch.actions
    ended = (following[:, 0] > 1).float()
    return batch.where(next_observations=following, rewards=batch.actions[:, 0], terminations=ended)


def worlds(online: int = 500) -> Replay:
    replay = Replay(SPEC, {Source.OFFLINE: 2_000, Source.ONLINE: max(online, 1)})
    for source, size in ((Source.OFFLINE, 2_000), (Source.ONLINE, online)):
        replay.pools[source].append(outcome(raw_batch(size, seed=int(source)), source))
    return replay


def trained(replay: Replay, **settings) -> OnPolicy:
    generator = OnPolicy(OnPolicy.Config(**(SMALL | settings)), SPEC, seed=0)
    refresh(generator, replay)
    return generator


def pairs() -> Transitions:
    """Unseen states and actions."""
    return raw_batch(400, seed=9)


@pytest.fixture(scope="module")
def ensemble() -> OnPolicy:
    return trained(worlds())


@pytest.fixture(scope="module")
def denoiser() -> OnPolicy:
    return trained(worlds(), model="denoiser", differences=True)


@pytest.mark.parametrize("model", ["ensemble", "denoiser"])
def test_an_offline_pair_gets_the_outcome_of_the_online_world(model, request):
    generator = request.getfixturevalue(model)
    made, truth = generator.rows(pairs(), NoAgent(), generator.rng), outcome(pairs(), Source.ONLINE)
    inside = (truth.next_observations.abs() < 2.5).all(1)  # within the range of the real rows
    error = (made.next_observations - truth.next_observations)[inside]
    assert error.square().mean() < 0.25 * (2 * 0.5 * pairs().actions).square().mean()  # of the difference of the worlds
    assert torch.corrcoef(torch.stack([made.rewards, truth.rewards]))[0, 1] > 0.9
    assert (made.terminations == truth.terminations).float().mean() > 0.9 and (made.returns == -torch.inf).all()
    assert made.next_actions.isnan().all()


def test_without_online_rows_outcomes_are_the_offline_worlds():
    generator = trained(worlds(online=0))
    made = generator.rows(pairs(), NoAgent(), generator.rng)
    errors = [(made.next_observations - outcome(pairs(), s).next_observations).square().mean() for s in EFFECT]
    assert 10 * errors[0] < errors[1]


def test_actions_are_the_policys_and_outcomes_belong_to_them(ensemble):
    replay, agent = worlds(), LinearPolicy()
    generator = OnPolicy(OnPolicy.Config(**(SMALL | {"actions": "policy"})), SPEC, seed=0)
    generator.load_state_dict(ensemble.state_dict())
    batch = pairs().where(sources=torch.full((400,), int(Source.GENERATED_OFFLINE)))
    made = generator.augment(batch, replay=replay, agent=agent)
    assert (made.actions - batch.observations[:, :2].tanh()).abs().mean() < 0.4  # the policy's noise is exp(-1)
    assert torch.equal(made.observations, batch.observations) and not torch.equal(made.actions, batch.actions)
    change = (made.next_observations - made.observations)[:, :2]
    assert (change + 0.5 * made.actions).square().mean() < 0.03


def test_a_policy_is_needed_for_its_actions():
    generator = OnPolicy(OnPolicy.Config(**(SMALL | {"actions": "policy"})), SPEC, seed=0)
    with pytest.raises(InputError, match="needs a policy"):
        generator.begin_refresh(worlds(), NoAgent())


def test_outcomes_stay_within_the_range_of_real_ones(ensemble):
    replay, far = worlds(), pairs().where(observations=10 * pairs().observations)
    following = ensemble.rows(far, NoAgent(), ensemble.rng).next_observations
    real = torch.cat([pool.all().next_observations for pool in (replay.offline, replay.online)])
    assert (following >= real.amin(0)).all() and (following <= real.amax(0)).all()


def test_each_member_learns_from_its_own_part_of_a_batch():
    ensemble, x, y = RegressionEnsemble(3, 2, size=2, hidden=(8,)), torch.randn(10, 3), torch.randn(10, 2)
    first, second = ensemble.members
    torch.testing.assert_close(ensemble.loss(x, y), first.loss(x[:5], y[:5]) + second.loss(x[5:], y[5:]))


def test_a_row_is_predicted_by_one_member():
    ensemble, x = RegressionEnsemble(3, 2, size=3, hidden=(8,)), torch.randn(50, 3)
    generator = OnPolicy(OnPolicy.Config(**SMALL), SPEC, seed=0)
    means, chosen = ensemble(x).mean, ensemble.predict(x, generator.rng).mean
    is_member = (means == chosen).all(-1)  # [E, B]
    assert is_member.any(0).all() and is_member.any(1).all()


def test_a_batch_that_the_members_cannot_share_is_refused():
    with pytest.raises(ValueError, match="'batch_size' is 10, expected a multiple of 'ensemble_size', 4"):
        OnPolicy.Config(batch_size=10)
