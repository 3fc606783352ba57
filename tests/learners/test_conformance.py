"""Every file in configs/learner names a learner that keeps the contract."""

from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Budget
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(5, 2)
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "learner").glob("*.yaml"))
LEARNER = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def build(path: Path, seed: int = 0) -> Any:
    settings = OmegaConf.merge({"discount": 0.99, "learner": OmegaConf.load(path)}).learner
    OmegaConf.update(settings, "discount", 0.99)
    module, name = settings.pop("target").rsplit(".", 1)
    cls = getattr(import_module(module), name)
    config = OmegaConf.merge(OmegaConf.structured(cls.Config), settings, {"hidden": [16, 16], "batch_size": 32})
    return cls(OmegaConf.to_object(config), SPEC, seed=seed)


def make_replay() -> Replay:
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    replay = Replay(SPEC, {Source.OFFLINE: 200, Source.ONLINE: 200})
    for pool in (replay.offline, replay.online):
        terminations = (normal(200) > 1).float()
        pool.append(
            Transitions.create(
                3 + 2 * normal(200, 5),
                normal(200, 2).tanh(),
                normal(200),
                normal(200, 5),
                terminations,
                returns=normal(200),
            )
        )
    return replay


def train(learner, replay, updates=22, seed=0):
    """`updates` updates in each phase; returns the last metrics."""
    metrics = {}
    for phase in learner.phases(Budget(pretrain_updates=10, online_steps=10_000)):
        sampler = Mixture(Mixture.Config(ramp=0), SPEC, seed=seed)
        learner.begin_phase(phase, replay)
        sampler.begin_phase(phase.shares)
        for _ in range(updates):
            metrics = metrics | learner.update(sampler.sample(replay, learner.batch_size))
    return metrics


def networks(learner):
    return {name: part for name, part in vars(learner).items() if isinstance(part, torch.nn.Module)}


def weights(learner):
    return {f"{name}.{key}": w for name, net in networks(learner).items() for key, w in net.state_dict().items()}


@LEARNER
def test_trains_finitely_through_its_phases(path):
    learner = build(path)
    before = {name: w.clone() for name, w in weights(learner).items()}
    metrics = train(learner, make_replay())
    assert all(value.ndim == 0 and not value.requires_grad and value.isfinite() for value in metrics.values())
    assert all(w.isfinite().all() for w in weights(learner).values())
    assert any(not torch.equal(w, before[name]) for name, w in weights(learner).items() if name.startswith("actor"))


@LEARNER
def test_acts_within_bounds_and_answers_as_an_agent(path):
    learner = build(path)
    train(learner, make_replay(), updates=2)
    observations = 10 * torch.randn(50, 5)
    for deterministic in (False, True):
        actions = learner.act(observations, deterministic=deterministic)
        assert actions.shape == (50, 2) and actions.abs().max() <= 1 and not actions.requires_grad
    assert torch.equal(actions, learner.act(observations, deterministic=True))
    actions = (0.9 * actions).requires_grad_()
    assert learner.values(observations, actions).shape == (50,)
    try:
        log_prob = learner.log_prob(observations, actions)
    except TypeError as refusal:  # of a deterministic actor
        assert "no density" in str(refusal)
        return
    (gradient,) = torch.autograd.grad(log_prob.sum(), actions)
    assert gradient.isfinite().all()


@LEARNER
def test_restores_to_bit_equal_updates_and_actions(path):
    learner, replay = build(path, seed=1), make_replay()
    train(learner, replay)
    restored = build(path, seed=2)
    restored.load_state_dict(deepcopy(learner.state_dict()))  # as a file would: nothing is shared
    for one in (learner, restored):
        train(one, replay, seed=3)
    assert all(torch.equal(w, weights(restored)[name]) for name, w in weights(learner).items())
    assert torch.equal(learner.act(torch.ones(3, 5)), restored.act(torch.ones(3, 5)))


@LEARNER
def test_depends_on_its_seed_only(path):
    torch.manual_seed(1)
    one, state = build(path, seed=7), torch.get_rng_state()
    torch.manual_seed(2)
    other = build(path, seed=7)
    for learner in (one, other):
        train(learner, make_replay(), updates=2)
    assert all(torch.equal(w, weights(other)[name]) for name, w in weights(one).items())
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@LEARNER
def test_targets_start_equal_and_are_not_trained(path):
    learner = build(path)
    for name, network in networks(learner).items():
        if name.startswith("target_"):
            original = getattr(learner, name.removeprefix("target_"))
            for target, source in zip(network.parameters(), original.parameters(), strict=True):
                assert torch.equal(target, source) and target is not source and not target.requires_grad


@LEARNER
def test_no_gradient_is_left_in_any_network(path):
    learner = build(path)
    train(learner, make_replay(), updates=2)
    assert all(p.grad is None for network in networks(learner).values() for p in network.parameters())


@LEARNER
def test_normalisers_are_fitted_alike_and_once(path):
    learner, replay = build(path), make_replay()
    train(learner, replay, updates=1)
    means = [w.clone() for name, w in weights(learner).items() if name.endswith("normalizer.mean")]
    assert len(means) >= 3 and all(torch.equal(mean, means[0]) for mean in means)
    fitted = replay.offline.all().observations.mean(0)
    torch.testing.assert_close(means[0], fitted if learner.config.normalize_observations else torch.zeros(5))
    replay.offline.fields["observations"].add_(1)
    train(learner, replay, updates=1)
    assert torch.equal(weights(learner)["critic.normalizer.mean"], means[0])
