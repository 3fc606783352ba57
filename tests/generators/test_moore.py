import pytest
import torch
from builders import SPEC, LinearPolicy, make_replay, raw_batch, refresh

from o2o_diffusion.generators.moore import MOORe
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source

AGENT = LinearPolicy()


def moore(**settings):
    small = {"width": 16, "updates": 40, "batch_size": 64, "num_samples": 60}
    return MOORe(MOORe.Config(**(small | settings)), SPEC, seed=0)


def refreshed(replay=None, **settings):
    generator, replay = moore(**settings), make_replay() if replay is None else replay
    refresh(generator, replay, AGENT)
    return generator, replay


def sampled(generator, replay, count=100, source=Source.GENERATED_ONLINE):
    state = generator.shared_rng.state_dict()
    rows = generator.sample(count, source=source, replay=replay, agent=AGENT)
    generator.shared_rng.load_state_dict(state)
    return rows


def test_uncertainty_is_larger_off_the_data():
    generator, _ = refreshed(make_replay(offline=1000, online=500), updates=200, width=32)
    b = raw_batch(500, seed=9)
    means = []
    for shift in (0.0, 3.0, 6.0):
        inputs = torch.cat([b.observations + shift, b.actions, torch.ones(500, 1)], dim=1)
        means.append(generator.uncertainty(inputs).mean())
    assert means[2] > 1.3 * means[1] > 1.3 * 1.3 * means[0]


def test_uncertainty_is_the_spread_of_the_members_normalized_means():
    generator, replay = refreshed()
    b = replay.online.all()
    inputs = generator.inputs(b, b.actions, b.sources)
    members = generator.model.model.ensemble.members
    means = torch.stack([(member(inputs).mean - member.targets.mean) / member.targets.std for member in members])
    expected = ((means - means.mean(0)) ** 2).mean(0).sum(1).sqrt()
    torch.testing.assert_close(generator.uncertainty(inputs), expected, atol=1e-5, rtol=1e-4)


def test_the_penalty_is_subtracted_from_rewards_and_ends_with_the_online_rows():
    generator, replay = refreshed(penalty=0.0, anneal_rows=400)
    free = sampled(generator, replay)
    generator.config = MOORe.Config(**(vars(generator.config) | {"penalty": 2.0}))
    penalized = sampled(generator, replay)  # 200 online rows: half of the penalty
    inputs = generator.inputs(free, free.actions, torch.ones(100))
    torch.testing.assert_close(penalized.rewards, free.rewards - 1.0 * generator.uncertainty(inputs).detach())
    assert torch.equal(penalized.next_observations, free.next_observations)
    assert [generator.penalty_weight(rows) for rows in (0, 100, 400, 900)] == pytest.approx([2.0, 1.5, 0.0, 0.0])


def test_a_rollout_goes_on_from_its_own_states_with_the_policys_actions_until_it_ends():
    generator, replay = refreshed(horizon=3)
    rows = sampled(generator, replay, 30)
    assert len(rows) <= 30 and (rows.sources == Source.GENERATED_ONLINE).all()
    first, others = rows[:10], rows[10:]
    going_on = first.next_observations[first.terminations == 0]
    assert torch.equal(others.observations[: len(going_on)], going_on)
    real = replay.online.all().observations
    assert torch.cdist(first.observations, real).amin(1).max() < 5e-3
    assert (rows.actions - rows.observations[:, :2].tanh()).abs().mean() < 0.6 and rows.actions.abs().max() <= 1


def test_offline_starts_are_those_like_online_rows():
    replay = make_replay(offline=400, online=200)
    replay.online.fields["actions"].copy_(0.4 + 0.05 * raw_batch(200).actions)
    generator, _ = refreshed(replay, temperature=0.5, ratio_rate=1e-2, updates=150)
    near = lambda rows: ((rows.actions - 0.4).abs().amax(1) < 0.3).float().mean()  # noqa: E731
    starts = generator.starts(500, Source.GENERATED_OFFLINE, replay)
    assert near(starts) > 2 * near(replay.offline.all()) > 0.02
    online = generator.starts(500, Source.GENERATED_ONLINE, replay)
    assert torch.cdist(online.observations, replay.online.all().observations).amin(1).max() < 5e-3


def test_the_pools_take_their_rows_at_a_refresh():
    generator = moore()
    share, due = generator.share(Replay(SPEC)), generator.next_refresh(Replay(SPEC))
    assert not share.at_batch_time and share.share == 0.5 and (due.rows, due.updates, due.first) == (60, 40, 1000)


def test_a_denoiser_is_refused():
    with pytest.raises(ValueError, match="'model' is denoiser, expected ensemble"):
        MOORe.Config(model="denoiser")
