import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import raw_batch, refresh

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.edis import EDIS
from o2o_diffusion.networks.actors import Gaussian
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(2, 1)
TINY = EDIS.Config(
    updates=30,
    whitening=0.0,
    refresh_updates=20,
    batch_size=32,
    width=16,
    depth=1,
    embedding_dim=8,
    sampling=Sampling(num_steps=4),
    guidance_ramp=0,
    energy_updates=20,
    energy_batch_size=16,
    energy_hidden=(16, 16),
    pool_size=64,
)


class Policy:
    """Actions around 0.6 + 0.1 (first observation)."""

    def __init__(self, std: float = 0.1):
        self.log_std = torch.tensor([std]).log()

    def policy(self, observations: torch.Tensor) -> Gaussian:
        return Gaussian(0.6 + 0.1 * observations[:, :1], self.log_std)

    def act(self, observations: torch.Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None):
        assert rng is not None and not deterministic
        return self.policy(observations).mean + self.log_std.exp() * rng.normal(len(observations), 1)

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return observations.sum(1)

    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.policy(observations).log_prob(actions)


class DeterministicPolicy(Policy):
    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        raise TypeError("no density")


def rows(size: int, center: float, seed: int) -> Transitions:
    """Observations around `center`, actions around 0, rewards equal to the actions."""
    batch = raw_batch(size, SPEC, seed=seed)
    observations, actions = center + 0.3 * batch.observations, 0.6 * batch.actions
    return batch.where(
        observations=observations,
        actions=actions,
        rewards=actions[:, 0],
        next_observations=observations + 0.1 * actions,
        terminations=torch.zeros(size),
    )


def clusters(offline: int = 600, online: int = 200) -> Replay:
    """Offline rows around -1, three times as many as online rows around 1."""
    replay = Replay(SPEC, {Source.OFFLINE: offline, Source.ONLINE: online})
    replay.offline.append(rows(offline, -1.0, 0))
    replay.online.append(rows(online, 1.0, 1))
    return replay


@pytest.fixture(scope="module")
def trained() -> EDIS:
    """Trained on the two clusters with the policy above."""
    larger = replace(
        TINY, updates=500, width=64, learning_rate=3e-3, sampling=Sampling(num_steps=12), energy_updates=200,
        energy_hidden=(48, 48), energy_batch_size=64, pool_size=1_000, energy_learning_rate=5e-3,
    )  # fmt: skip
    generator = EDIS(larger, SPEC, seed=0)
    refresh(generator, clusters(), Policy())
    return generator


def with_scales(generator: EDIS, state: float, policy: float, **changes: Any) -> EDIS:
    """A copy of `generator` with other settings."""
    other = EDIS(replace(generator.config, state_scale=state, policy_scale=policy, **changes), SPEC, seed=1)
    other.load_state_dict(copy.deepcopy(generator.state_dict()))
    return other


def test_energies_move_states_and_actions_and_nothing_else_does(trained, draw):
    prior = draw(with_scales(trained, 0.0, 0.0, transition_scale=0.0), 1_000)
    state = draw(with_scales(trained, 1.0, 0.0, transition_scale=0.0), 1_000)
    both = draw(with_scales(trained, 1.0, 1.0), 1_000)
    assert (prior.observations.mean(1) > 0).float().mean() < 0.4
    assert (state.observations.mean(1) > 0).float().mean() > 0.9
    assert (both.observations.mean(1) > 0).float().mean() > 0.9
    assert abs(prior.actions.mean()) < 0.12 and abs(state.actions.mean()) < 0.15
    assert both.actions.mean() > 0.3  # 0.7 is the policy's, 0.6 the greatest of the data


def test_rows_of_the_offline_label_are_the_models_own(trained, draw):
    own = draw(with_scales(trained, 0.0, 0.0, transition_scale=0.0), 100)
    offline = draw(with_scales(trained, 1.0, 1.0), 100, source=Source.GENERATED_OFFLINE)
    assert torch.equal(own.observations, offline.observations)


def test_the_policys_own_density_needs_no_training(trained, draw):
    guided = with_scales(trained, 1.0, 1.0, policy_energy="log_prob", transition_scale=0.0)
    assert guided.learned == ["state"]
    policy = Policy()
    batch = draw(guided, 1_000, agent=policy)
    assert (batch.actions - policy.policy(batch.observations).mean).abs().mean() < 0.2  # 0.7 for the model's own
    with pytest.raises(InputError, match="needs a policy"):
        draw(guided, 10)


def test_the_policys_energy_is_that_of_raw_rows():
    """d(-log pi)/dz = (a - mean(s)) / std^2 times the scale of actions, before whitening that of its targets."""
    generator, policy = EDIS(TINY, SPEC, seed=0), Policy(0.5)
    generator.model.fit([clusters().offline, clusters().online], (0.75, 0.25))
    batch = rows(5, 1.0, 2)
    x = generator.model.layout.encode(SPEC.flatten(batch), -1).requires_grad_()
    energies = generator.policy_energy(x, policy)
    assert torch.allclose(energies, -policy.log_prob(batch.observations, batch.actions), atol=1e-5)
    gradient = torch.autograd.grad(energies.sum(), x)[0][:, SPEC.columns["actions"]]
    raw = (batch.actions - policy.policy(batch.observations).mean) / 0.25
    scale = generator.model.layout.std[SPEC.columns["actions"]]
    scale = scale * generator.model.layout.whitening.regressions["actions"].targets.std
    residuals = x[:, SPEC.columns["actions"]] * generator.model.layout.std[SPEC.columns["actions"]]
    residuals = residuals + generator.model.layout.mean[SPEC.columns["actions"]]
    assert torch.allclose(gradient, raw * scale * residuals.cosh(), atol=1e-4)  # d sinh(x) / dx


def test_the_model_is_trained_first_then_one_energy_after_the_other():
    generator = EDIS(TINY, SPEC, seed=0)
    assert generator.next_refresh(clusters()).updates == 30 + 3 * 20
    metrics = refresh(generator, clusters(), Policy())
    assert set(metrics[29]) == {"loss"}
    assert set(metrics[30]) == {"loss", "state_loss", "state_accuracy"}
    assert "policy_loss" not in metrics[49] and "policy_loss" in metrics[50] and "transition_loss" in metrics[70]
    assert all(value.isfinite() for value in metrics[-1].values()) and not generator.contrast_rows
    assert abs(metrics[30]["state_loss"] - torch.tensor(11.0).log()) < 1e-5  # a flat energy guesses
    assert generator.next_refresh(clusters()).updates == 20 + 3 * 20  # a later, warm-started refresh
    assert generator.update(clusters(), Policy()) == metrics[-1]


def test_a_new_refresh_begins_with_flat_energies(trained, draw):
    generator = with_scales(trained, 1.0, 1.0)
    generator.begin_refresh(clusters(), Policy())
    own = draw(generator, 20, source=Source.GENERATED_OFFLINE)
    generator.rng.load_state_dict(trained.rng.state_dict())
    assert torch.equal(draw(generator, 20).observations, own.observations)


def test_from_scratch_forgets_the_energies_too(trained):
    kept, fresh = with_scales(trained, 1.0, 1.0), with_scales(trained, 1.0, 1.0, from_scratch=True)
    weights = trained.energies["state"].fourier.frequencies  # drawn anew, but never trained
    for generator, same in ((kept, True), (fresh, False)):
        generator.begin_refresh(clusters(), Policy())
        assert torch.equal(generator.energies["state"].fourier.frequencies, weights) is same


def test_what_is_switched_off_is_not_trained_and_needs_no_policy(draw):
    generator = EDIS(replace(TINY, policy_scale=0.0, transition_scale=0.0), SPEC, seed=0)
    metrics = refresh(generator, clusters(), NoAgent())
    assert len(metrics) == 50 and set(metrics[-1]) == {"loss", "state_loss", "state_accuracy"}
    assert len(draw(generator, 10)) == 10
    without = EDIS(replace(TINY, state_scale=0.0, policy_scale=0.0, transition_scale=0.0), SPEC, seed=0)
    assert without.next_refresh(clusters()).updates == 30


def test_policies_that_do_not_serve_are_refused_before_training():
    generator, density = EDIS(TINY, SPEC, seed=0), EDIS(replace(TINY, policy_energy="log_prob"), SPEC, seed=0)
    with pytest.raises(InputError, match="needs a policy"):
        generator.begin_refresh(clusters(), NoAgent())
    with pytest.raises(InputError, match="'log_prob' needs a stochastic policy"):
        density.begin_refresh(clusters(), DeterministicPolicy())
    generator.begin_refresh(clusters(), DeterministicPolicy())


def test_without_online_rows_there_is_no_guidance(draw):
    generator = EDIS(TINY, SPEC, seed=0)
    metrics = refresh(generator, clusters(online=0), Policy())
    assert set(metrics[-1]) == {"loss"} and len(metrics) == generator.config.updates + 60
    state = generator.rng.state_dict()
    own = draw(generator, 10, source=Source.GENERATED_OFFLINE)
    generator.rng.load_state_dict(state)
    assert torch.equal(draw(generator, 10).observations, own.observations)


def test_scales_grow_with_the_online_rows(trained, draw):
    half = with_scales(trained, 0.5, 0.5, transition_scale=0.5)
    ramped = with_scales(trained, 1.0, 1.0, guidance_ramp=400)  # 200 rows are held
    assert torch.equal(draw(half, 20).observations, draw(ramped, 20).observations)


@pytest.mark.parametrize("stop", [45, 65, 70])
def test_restoring_inside_an_energys_training_continues_bit_for_bit(stop, draw):
    replay, first, second = clusters(), EDIS(TINY, SPEC, seed=0), EDIS(TINY, SPEC, seed=7)
    policy = Policy()
    refresh(first, replay, policy, num_updates=stop)
    assert bool(first.contrast_rows) == (stop != 70)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(90 - stop):
        first.update(replay, policy)
        second.update(replay, policy)
    assert first.num_trained == second.num_trained == 3
    for name, weights in first.energies.state_dict().items():
        assert torch.equal(weights, second.energies.state_dict()[name]), name
    assert torch.equal(draw(first, 8).actions, draw(second, 8).actions)


def test_a_saved_folder_keeps_the_energies(trained, tmp_path, draw):
    trained.save_pretrained(tmp_path)
    loaded = EDIS.from_pretrained(tmp_path, seed=1)
    for name, weights in trained.energies.state_dict().items():
        assert torch.equal(weights, loaded.energies.state_dict()[name]), name
    assert (draw(loaded, 200).observations.mean(1) > 0).float().mean() > 0.9
    weights = tmp_path / "energies.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InputError, match="was altered"):
        EDIS.from_pretrained(tmp_path)
