"""Every file in configs/learner names a learner that keeps the contract."""

from copy import deepcopy

import pytest
import torch
from builders import LARGEST, SPEC, build, leaves, make_replay, names, raw_batch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.networks.normalizer import Normalizer
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Budget

LEARNER = pytest.mark.parametrize("path", names("learner"), ids=lambda path: path.stem)
BUDGET = Budget(pretrain_updates=10, online_steps=10_000)
UPDATES = LARGEST["interval"] + 2  # so that every network is trained in each phase


def off_center() -> Replay:
    """A replay whose observations have to be normalized."""
    return make_replay(centers=(3.0, 3.0))


def train(learner, replay, updates=UPDATES, seed=0):
    """`updates` updates in each phase that learns; returns the last value of each metric."""
    metrics, sampler = {}, Mixture(Mixture.Config(ramp=0), SPEC, seed=seed)
    for phase in learner.phases(BUDGET):
        learner.begin_phase(phase, replay)
        for _ in range(updates if phase.learns else 0):
            draw = sampler.sample(replay, phase.shares, phase.batch_size)
            metrics |= learner.update(replay.scaled(replay.gather(draw)))
    return metrics


def networks(learner):
    return {name: part for name, part in vars(learner).items() if isinstance(part, torch.nn.Module)}


def normalizers(learner):
    modules = [module for network in networks(learner).values() for module in network.modules()]
    return [module for module in modules if isinstance(module, Normalizer)]


def normalizes(learner):
    return getattr(learner.config, "normalize_observations", False)


def explore(learner):
    return learner.act(raw_batch(50, center=3.0).observations, rng=ShardedRng(0))


def assert_equal(one, other):
    """Compare two states to the bit."""
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@LEARNER
def test_phases_are_within_the_budget(path):
    phases = build("learner", path).phases(BUDGET)
    assert phases and any(phase.learns for phase in phases)
    assert sum(phase.env_steps for phase in phases) <= BUDGET.online_steps
    for phase in phases:
        shares = phase.shares
        parts = (shares.offline, shares.online, shares.generated_offline, shares.generated_online)
        assert phase.batch_size > 0 and min(parts) >= 0 and sum(parts) == pytest.approx(1)
        assert phase.updates > 0 or phase.env_steps > 0


@LEARNER
def test_trains_finitely_through_its_phases(path):
    learner, replay = build("learner", path), off_center()
    learner.begin_phase(learner.phases(BUDGET)[0], replay)
    observations = replay.offline.all().observations
    before = learner.act(observations, deterministic=True)
    metrics = train(learner, replay)
    assert any(name.endswith("loss") for name in metrics)
    assert all(value.ndim == 0 and not value.requires_grad and value.isfinite() for value in metrics.values())
    state = [value for value in leaves(learner.state_dict()).values() if isinstance(value, torch.Tensor)]
    assert all(value.isfinite().all() for value in state)
    assert not torch.equal(learner.act(observations, deterministic=True), before)


@LEARNER
def test_a_loss_on_raw_rows_is_not_finite_unless_nothing_depends_on_discounts_and_returns(path):
    phases = build("learner", path).phases(BUDGET)
    for number in (number for number, phase in enumerate(phases) if phase.learns):

        def update(batch, number=number):
            learner = build("learner", path)
            for phase in phases[: number + 1]:
                learner.begin_phase(phase, off_center())
            return learner.update(batch)

        raw = raw_batch(phases[number].batch_size)
        metrics = update(raw)
        if all(value.isfinite() for name, value in metrics.items() if name.endswith("loss")):
            ones = torch.ones(len(raw))
            assert_equal(metrics, update(raw.where(discounts=0.5 * ones, returns=ones)))


@LEARNER
def test_acts_within_bounds_and_answers_as_an_agent(path):
    learner = build("learner", path)
    train(learner, off_center(), updates=2)
    observations = 10 * torch.randn(50, SPEC.observation_dim)
    for deterministic in (False, True):
        actions = learner.act(observations, deterministic=deterministic, rng=ShardedRng(0))
        assert actions.shape == (50, 2) and actions.abs().max() <= 1 and not actions.requires_grad
    assert torch.equal(actions, learner.act(observations, deterministic=True))
    observations, actions = observations.requires_grad_(), (0.9 * actions).requires_grad_()
    values = learner.values(observations, actions)
    assert values.shape == (50,)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(values.sum(), (observations, actions)))
    try:
        log_prob = learner.log_prob(observations, actions)
    except TypeError as refusal:  # of a deterministic actor
        assert "no density" in str(refusal)
        return
    assert log_prob.shape == (50,)
    (gradient,) = torch.autograd.grad(log_prob.sum(), actions)
    assert gradient.isfinite().all()


@LEARNER
def test_explores_with_the_callers_rng_only(path):
    learner = build("learner", path)
    for phase in learner.phases(BUDGET):
        learner.begin_phase(phase, off_center())
        before = deepcopy(learner.state_dict())
        assert torch.equal(explore(learner), explore(learner))
        learner.act(torch.ones(3, SPEC.observation_dim), deterministic=True)
        assert_equal(learner.state_dict(), before)
        with pytest.raises(TypeError):
            learner.act(torch.ones(3, SPEC.observation_dim))


@LEARNER
def test_restores_to_bit_equal_updates_and_actions(path):
    learner, replay = build("learner", path, seed=1), off_center()
    train(learner, replay)
    restored = build("learner", path, seed=2)
    restored.load_state_dict(deepcopy(learner.state_dict()))  # as a file would: nothing is shared
    assert_equal(learner.state_dict(), restored.state_dict())
    for one in (learner, restored):
        train(one, replay, seed=3)
    assert_equal(learner.state_dict(), restored.state_dict())
    assert torch.equal(explore(learner), explore(restored))


@LEARNER
def test_explores_anew_with_each_draw_and_each_stream(path):
    learner, observations = build("learner", path), raw_batch(50, center=3.0).observations
    train(learner, off_center(), updates=1)
    rng = ShardedRng(0)
    drawn = [learner.act(observations, rng=stream) for stream in (rng, rng, ShardedRng(1))]
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
    assert not torch.equal(drawn[0], learner.act(observations, deterministic=True))


@LEARNER
def test_a_restored_learner_keeps_its_normalization(path):
    learner, restored, replay = build("learner", path), build("learner", path), off_center()
    train(learner, replay, updates=1)
    restored.load_state_dict(deepcopy(learner.state_dict()))
    replay.offline.fields["observations"].add_(1)
    restored.begin_phase(learner.phases(BUDGET)[-1], replay)
    for one, other in zip(normalizers(learner), normalizers(restored), strict=True):
        assert torch.equal(one.mean, other.mean)


@LEARNER
def test_depends_on_its_seed_only(path):
    torch.manual_seed(1)
    one, state = build("learner", path, seed=7), torch.get_rng_state()
    torch.manual_seed(2)
    other = build("learner", path, seed=7)
    for learner in (one, other):
        train(learner, off_center(), updates=2)
    assert_equal(one.state_dict(), other.state_dict())
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@LEARNER
def test_targets_start_equal_and_are_not_trained(path):
    learner = build("learner", path)
    for name, network in networks(learner).items():
        original = getattr(learner, name.removeprefix("target_"), network)
        if original is not network:
            for target, source in zip(network.parameters(), original.parameters(), strict=True):
                assert torch.equal(target, source) and target is not source and not target.requires_grad


@LEARNER
def test_no_gradient_is_left_in_any_network(path):
    learner = build("learner", path)
    train(learner, off_center(), updates=2)
    assert all(p.grad is None for network in networks(learner).values() for p in network.parameters())


@LEARNER
def test_normalizers_are_fitted_alike_and_once(path):
    learner, replay = build("learner", path), off_center()
    observations = replay.offline.all().observations
    expected = observations.mean(0).clone() if normalizes(learner) else torch.zeros(SPEC.observation_dim)
    for _ in range(2):
        train(learner, replay, updates=1)
        assert normalizers(learner) or not normalizes(learner)
        for normalizer in normalizers(learner):
            torch.testing.assert_close(normalizer.mean, expected)
        replay.offline.fields["observations"].add_(1)


@LEARNER
def test_normalized_observations_have_no_unit(path):
    replays, learners = (off_center(), off_center()), [build("learner", path) for _ in range(2)]
    replays[1].offline.fields["observations"].mul_(4).add_(5)
    for learner, replay in zip(learners, replays, strict=True):
        learner.begin_phase(learner.phases(BUDGET)[0], replay)
    if normalizes(learners[0]):
        rows = replays[0].offline.all()
        for answer in (lambda a, s: a.act(s, deterministic=True), lambda a, s: a.values(s, rows.actions)):
            found = answer(learners[1], 4 * rows.observations + 5)
            torch.testing.assert_close(found, answer(learners[0], rows.observations), atol=1e-3, rtol=1e-3)
