"""Every file in configs/generator names a generator that keeps the contract."""

from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from o2o_diffusion.distributed import Noise
from o2o_diffusion.errors import InputError
from o2o_diffusion.networks.actors import Gaussian
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import locate
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(3, 2)
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "generator").glob("*.yaml"))
GENERATOR = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
DIFFUSION = pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem != "none"], ids=lambda path: path.stem)
TINY = {
    "updates": 12, "refresh_updates": 6, "num_samples": 40, "batch_size": 16, "width": 16, "depth": 1,
    "embedding_dim": 8, "solver": "dpm", "num_steps": 4, "restarts": 1, "energy_updates": 10, "pool_size": 32,
    "curiosity_updates": 4,
    "hidden": (8, 8),
}  # fmt: skip


class LinearPolicy:
    """A stochastic policy around tanh of the first observations; a new one begins with the same noise."""

    def __init__(self) -> None:
        self.noise = Noise(0)

    def policy(self, observations: torch.Tensor) -> Gaussian:
        return Gaussian(observations[:, :2].tanh(), torch.full((2,), -1.0))

    def act(self, observations: torch.Tensor, *, deterministic: bool = False) -> torch.Tensor:
        policy = self.policy(observations)
        return (policy.mode if deterministic else policy.sample(self.noise)).clamp(-1, 1)

    def values(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return observations.sum(1) - actions.square().sum(1)

    def log_prob(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.policy(observations).log_prob(actions)


def build(path: Path, seed: int = 0, **settings: Any) -> Any:
    content = OmegaConf.load(path)
    cls: Any = locate(content.pop("target"))
    known = {field.name for field in fields(cls.Config)}
    tiny = {name: value for name, value in (TINY | settings).items() if name in known}
    return cls(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls.Config), content, tiny)), SPEC, seed=seed)


def make_replay(offline: int = 150, online: int = 90) -> Replay:
    g = torch.Generator().manual_seed(0)
    replay = Replay(SPEC, {Source.OFFLINE: 150, Source.ONLINE: 90})
    for pool, size in ((replay.offline, offline), (replay.online, online)):
        observations, actions = torch.randn(size, 3, generator=g), torch.rand(size, 2, generator=g) * 2 - 1
        terminations = (torch.rand(size, generator=g) < 0.2).float()
        rewards, returns = observations.sum(1), torch.randn(size, generator=g)
        following = observations + 0.1 * torch.randn(size, 3, generator=g)
        pool.append(Transitions.create(observations, actions, rewards, following, terminations, returns=returns))
    return replay


def refresh(generator: Any, replay: Replay, stop: int | None = None) -> dict[str, torch.Tensor]:
    metrics: dict[str, torch.Tensor] = {}
    generator.begin_refresh(replay, LinearPolicy())
    for _ in range(generator.num_updates if stop is None else stop):
        metrics |= generator.update(replay, LinearPolicy())
    return metrics


def draw(generator: Any, size: int, replay: Replay, source: Source = Source.GENERATED_ONLINE) -> Transitions:
    return generator.sample(size, source=source, replay=replay, agent=LinearPolicy())


@GENERATOR
def test_refreshes_finitely_and_gives_valid_rows(path):
    generator, replay = build(path), make_replay()
    for _ in range(2):
        metrics = refresh(generator, replay)
        assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    for source, count in generator.generated.counts(generator.num_samples).items():
        rows = draw(generator, count, replay, source)
        assert 0 < len(rows) <= count and (rows.sources == source).all()
        assert SPEC.flatten(rows).isfinite().all() and rows.actions.abs().max() <= 1
        assert set(rows.terminations.unique().tolist()) <= {0.0, 1.0}


@GENERATOR
def test_one_pool_alone_is_no_obstacle(path):
    for replay in (make_replay(online=0), make_replay(offline=0)):
        generator = build(path)
        refresh(generator, replay)
        assert len(draw(generator, 10, replay)) == (0 if path.stem == "none" else 10)


@GENERATOR
@pytest.mark.parametrize("stop", [2, 9, 17])
def test_restoring_inside_a_refresh_continues_bit_for_bit(path, stop):
    replay, first, second = make_replay(), build(path, seed=0), build(path, seed=7)
    stop = min(stop, first.num_updates)
    total = first.num_updates
    refresh(first, replay, stop)
    second.load_state_dict(deepcopy(first.state_dict()))
    for _ in range(total - stop):
        first.update(replay, LinearPolicy())
        second.update(replay, LinearPolicy())
    assert first.num_updates == second.num_updates
    rows = [SPEC.flatten(draw(generator, 8, replay)) for generator in (first, second)]
    assert torch.equal(*rows)


@DIFFUSION
def test_depends_on_its_seed_only(path):
    rows = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator, replay = build(path, seed=3), make_replay()
        refresh(generator, replay)
        rows.append(SPEC.flatten(draw(generator, 8, replay)))
        assert torch.get_rng_state().equal(torch.random.manual_seed(global_seed).get_state())
    assert torch.equal(*rows)


@DIFFUSION
def test_a_saved_folder_gives_the_same_rows(path, tmp_path):
    generator, replay = build(path), make_replay()
    refresh(generator, replay)
    generator.save_pretrained(tmp_path)
    one, two = (type(generator).from_pretrained(tmp_path, seed=5) for _ in range(2))
    generator.noise, generator.row_noise = Noise(5), Noise(6)
    rows = [SPEC.flatten(draw(g, 8, replay)) for g in (one, two, generator)]
    assert torch.equal(rows[0], rows[1]) and torch.allclose(rows[0], rows[2], atol=1e-5)


@DIFFUSION
def test_partial_noising_stays_close_to_real_rows(path):
    replay = make_replay()
    seen = replay.offline.all().observations
    distances = {}
    for sigma in (0.01, 80.0):
        energies = {"policy_scale": 0, "state_scale": 0, "transition_scale": 0}
        generator = build(path, start_sigma=sigma, restarts=None, differences=False, **energies)
        refresh(generator, replay)
        rows = draw(generator, 20, replay)
        distances[sigma] = torch.cdist(rows.observations, seen).amin(1).mean()
    assert distances[0.01] < 0.1 < distances[80.0]
    with pytest.raises(InputError, match="needs offline rows"):
        generator.sample(5, agent=LinearPolicy())


@DIFFUSION
def test_both_solvers_make_rows(path):
    generator, replay = build(path, solver="heun", num_steps=3), make_replay()
    refresh(generator, replay)
    assert len(draw(generator, 10, replay)) == 10


@DIFFUSION
@pytest.mark.parametrize("std", [1.0, 0.3, 0.05])
def test_restarts_mend_the_solvers_error(path, std):
    """The exact denoiser of N(0, std^2): 16 steps of DPM spread it too far at every scale, restarts bring it back."""
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))  # not the generator's own
    errors = {}
    for restarts in (0, 8):
        generator = build(path, num_steps=16, restarts=restarts)
        rows = generator.solve(lambda x, sigma: x * std**2 / (std**2 + sigma**2), generator.model.sigma_max * noise)
        errors[restarts] = abs(rows.std() / std - 1)
    assert errors[8] < 0.025 < 0.05 < errors[0]


@DIFFUSION
def test_rows_restart_where_the_solver_needs_it(path):
    counts = [({"restarts": None}, 8), ({"solver": "heun"}, 0), ({"start_sigma": 0.2}, 0), ({"restarts": 2}, 2)]
    for settings, expected in counts:
        assert build(path, **{"solver": "dpm", "restarts": None, **settings}).restarts == expected
    with pytest.raises(InputError, match="restart_steps"):
        build(path, restart_steps=0)
    with pytest.raises(InputError, match="at most restart_sigma"):
        build(path, restart_sigma=0.02)


@DIFFUSION
@pytest.mark.parametrize(("start_sigma", "expected"), [(None, (80.0, 1.0, 0.1, 0.01)), (0.2, (0.2, 0.2, 0.0447, 0.01))])
def test_the_noise_of_restarts_falls(path, start_sigma, expected):
    generator = build(path, start_sigma=start_sigma, num_steps=2, restarts=3, restart_steps=2, restart_sigma_min=0.01)
    seen = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(float(sigma.flatten()[0]))
        return torch.zeros_like(x)

    generator.solve(denoise, torch.randn(4, generator.spec.row_dim))
    assert seen[::2] == pytest.approx(expected, rel=0.01)
