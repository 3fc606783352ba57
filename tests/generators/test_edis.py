import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.edis import EDIS
from o2o_diffusion.networks.actors import Gaussian
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(2, 1)
NOBODY: Any = None
TINY = EDIS.Config(
    updates=30,
    refresh_updates=20,
    batch_size=32,
    width=16,
    depth=1,
    embedding_dim=8,
    num_steps=4,
    guidance_ramp=0,
    energy_updates=20,
    energy_batch_size=16,
    energy_hidden=(16, 16),
    pool_size=64,
)


class Policy:
    """Actions around 0.6 + 0.1 (first observation), given away by a seed of its own."""

    def __init__(self, std: float = 0.1):
        self.log_std, self.generator = torch.tensor([std]).log(), torch.Generator().manual_seed(0)

    def policy(self, observations: torch.Tensor) -> Gaussian:
        return Gaussian(0.6 + 0.1 * observations[:, :1], self.log_std)

    def act(self, observations: torch.Tensor, *, deterministic: bool = False) -> torch.Tensor:
        noise = torch.randn(len(observations), 1, generator=self.generator)
        return self.policy(observations).mean + self.log_std.exp() * noise

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return observations.sum(1)

    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.policy(observations).log_prob(actions)


class DeterministicPolicy(Policy):
    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        raise TypeError("no density")


def rows(size: int, centre: float, seed: int) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observations = centre + 0.3 * torch.randn(size, 2, generator=generator)
    actions = (0.4 * torch.randn(size, 1, generator=generator)).clamp(-1, 1)
    return Transitions.create(observations, actions, actions[:, 0], observations + 0.1 * actions, torch.zeros(size))


def replay(offline: int = 600, online: int = 200) -> Replay:
    """Offline rows around -1, three times as many as online rows around 1; actions around 0."""
    replay = Replay(SPEC, {Source.OFFLINE: 600, Source.ONLINE: 200})
    replay.offline.append(rows(offline, -1.0, 0))
    replay.online.append(rows(online, 1.0, 1))
    return replay


def refresh(generator: EDIS, replay: Replay, agent: Any, num_updates: int | None = None) -> list[dict]:
    generator.begin_refresh(replay, agent)
    return [
        generator.update(replay, agent) for _ in range(generator.num_updates if num_updates is None else num_updates)
    ]


@pytest.fixture(scope="module")
def trained() -> EDIS:
    """Trained on the two clusters with the policy above."""
    larger = replace(
        TINY, updates=500, width=64, learning_rate=3e-3, num_steps=12, energy_updates=200, energy_hidden=(48, 48),
        energy_batch_size=64, pool_size=1_000, energy_learning_rate=5e-3,
    )  # fmt: skip
    generator = EDIS(larger, SPEC, seed=0)
    refresh(generator, replay(), Policy())
    return generator


def with_scales(generator: EDIS, state: float, policy: float, **changes: Any) -> EDIS:
    """A copy of `generator` with other settings."""
    other = EDIS(replace(generator.config, state_scale=state, policy_scale=policy, **changes), SPEC, seed=1)
    other.load_state_dict(copy.deepcopy(generator.state_dict()))
    return other


def test_energies_move_states_and_actions_and_nothing_else_does(trained):
    prior = with_scales(trained, 0.0, 0.0, transition_scale=0.0).sample(1_000)
    state = with_scales(trained, 1.0, 0.0, transition_scale=0.0).sample(1_000)
    both = with_scales(trained, 1.0, 1.0).sample(1_000)
    assert (prior.observations.mean(1) > 0).float().mean() < 0.4
    assert (state.observations.mean(1) > 0).float().mean() > 0.9
    assert (both.observations.mean(1) > 0).float().mean() > 0.9
    assert abs(prior.actions.mean()) < 0.12 and abs(state.actions.mean()) < 0.15
    assert both.actions.mean() > 0.4  # 0.7 is the policy's


def test_rows_of_the_offline_label_are_the_models_own(trained):
    own = with_scales(trained, 0.0, 0.0, transition_scale=0.0).sample(100)
    offline = with_scales(trained, 1.0, 1.0).sample(100, source=Source.GENERATED_OFFLINE)
    assert torch.equal(own.observations, offline.observations)


def test_the_policys_own_density_needs_no_training(trained):
    guided = with_scales(trained, 1.0, 1.0, policy_energy="log_prob", transition_scale=0.0)
    assert guided.learned == ["state"]
    policy = Policy()
    batch = guided.sample(1_000, agent=policy)
    assert (batch.actions - policy.policy(batch.observations).mean).abs().mean() < 0.2  # 0.7 for the model's own
    with pytest.raises(InputError, match="can't be drawn without a policy"):
        guided.sample(10)


def test_the_policys_energy_is_that_of_raw_rows():
    """d(-log pi)/dz = (a - mean(s)) / std^2 times the normaliser's scale of actions."""
    generator, policy = EDIS(TINY, SPEC, seed=0), Policy(0.5)
    generator.model.fit([replay().offline, replay().online], (0.75, 0.25))
    batch = rows(5, 1.0, 2)
    x = generator.model.normalize(SPEC.flatten(batch)).requires_grad_()
    energies = generator.policy_energy(x, policy)
    assert torch.allclose(energies, -policy.log_prob(batch.observations, batch.actions), atol=1e-5)
    gradient = torch.autograd.grad(energies.sum(), x)[0][:, SPEC.columns["actions"]]
    raw = (batch.actions - policy.policy(batch.observations).mean) / 0.25
    assert torch.allclose(gradient, raw * generator.model.std[SPEC.columns["actions"]], atol=1e-4)


def test_the_model_is_trained_first_then_one_energy_after_the_other():
    generator = EDIS(TINY, SPEC, seed=0)
    assert generator.num_updates == 30 + 3 * 20
    metrics = refresh(generator, replay(), Policy())
    assert set(metrics[29]) == {"loss"}
    assert set(metrics[30]) == {"loss", "state_loss", "state_accuracy"}
    assert "policy_loss" not in metrics[49] and "policy_loss" in metrics[50] and "transition_loss" in metrics[70]
    assert all(value.isfinite() for value in metrics[-1].values()) and not generator.pool
    assert abs(metrics[30]["state_loss"] - torch.tensor(11.0).log()) < 1e-5  # a flat energy guesses
    assert generator.num_updates == 20 + 3 * 20  # a later, warm-started refresh
    assert generator.update(replay(), Policy()) == metrics[-1]


def test_a_new_refresh_begins_with_flat_energies(trained):
    generator = with_scales(trained, 1.0, 1.0)
    generator.begin_refresh(replay(), Policy())
    own = generator.sample(20, source=Source.GENERATED_OFFLINE)
    generator.noise.load_state_dict(trained.noise.state_dict())
    assert torch.equal(generator.sample(20).observations, own.observations)


def test_from_scratch_forgets_the_energies_too(trained):
    kept, fresh = with_scales(trained, 1.0, 1.0), with_scales(trained, 1.0, 1.0, from_scratch=True)
    weights = trained.energies["state"].fourier.frequencies  # drawn anew, but never trained
    for generator, same in ((kept, True), (fresh, False)):
        generator.begin_refresh(replay(), Policy())
        assert torch.equal(generator.energies["state"].fourier.frequencies, weights) is same


def test_what_is_switched_off_is_not_trained_and_needs_no_policy():
    generator = EDIS(replace(TINY, policy_scale=0.0, transition_scale=0.0), SPEC, seed=0)
    metrics = refresh(generator, replay(), NOBODY)
    assert len(metrics) == 50 and set(metrics[-1]) == {"loss", "state_loss", "state_accuracy"}
    assert len(generator.sample(10)) == 10
    assert EDIS(replace(TINY, state_scale=0.0, policy_scale=0.0, transition_scale=0.0), SPEC, seed=0).num_updates == 30


def test_policies_that_do_not_serve_are_refused_before_training():
    generator, density = EDIS(TINY, SPEC, seed=0), EDIS(replace(TINY, policy_energy="log_prob"), SPEC, seed=0)
    with pytest.raises(InputError, match="needs a policy"):
        generator.begin_refresh(replay(), NoAgent())
    with pytest.raises(InputError, match="policy_scale"):
        generator.begin_refresh(replay(), NOBODY)
    with pytest.raises(InputError, match="'log_prob' needs a stochastic policy"):
        density.begin_refresh(replay(), DeterministicPolicy())
    generator.begin_refresh(replay(), DeterministicPolicy())


def test_without_online_rows_there_is_no_guidance():
    generator = EDIS(TINY, SPEC, seed=0)
    metrics = refresh(generator, replay(online=0), Policy())
    assert set(metrics[-1]) == {"loss"} and len(metrics) == generator.config.updates + 60
    noise = generator.noise.state_dict()
    own = generator.sample(10, source=Source.GENERATED_OFFLINE)
    generator.noise.load_state_dict(noise)
    assert torch.equal(generator.sample(10).observations, own.observations)


def test_scales_grow_with_the_online_rows(trained):
    half = with_scales(trained, 0.5, 0.5, transition_scale=0.5)
    ramped = with_scales(trained, 1.0, 1.0, guidance_ramp=400)  # 200 rows are held
    assert torch.equal(half.sample(20).observations, ramped.sample(20).observations)


@pytest.mark.parametrize("stop", [45, 65, 70])
def test_restoring_inside_an_energys_training_continues_bit_for_bit(stop):
    store, first, second = replay(), EDIS(TINY, SPEC, seed=0), EDIS(TINY, SPEC, seed=7)
    policy = Policy()
    refresh(first, store, policy, stop)
    assert bool(first.pool) == (stop != 70)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    same_policy = copy.deepcopy(policy)  # a learner is restored too
    for _ in range(90 - stop):
        first.update(store, policy)
        second.update(store, same_policy)
    assert first.num_trained == second.num_trained == 3
    for name, weights in first.energies.state_dict().items():
        assert torch.equal(weights, second.energies.state_dict()[name]), name
    assert torch.equal(first.sample(8).actions, second.sample(8).actions)


def test_a_saved_folder_keeps_the_energies(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = EDIS.from_pretrained(tmp_path, seed=1)
    for name, weights in trained.energies.state_dict().items():
        assert torch.equal(weights, loaded.energies.state_dict()[name]), name
    assert (loaded.sample(200).observations.mean(1) > 0).float().mean() > 0.9
    weights = tmp_path / "energies.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InputError, match="was altered"):
        EDIS.from_pretrained(tmp_path)
