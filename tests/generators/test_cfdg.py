import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.none import NoGenerator
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(2, 1)
AGENT: Any = None  # CFDG asks nothing of it
TINY = CFDG.Config(
    updates=40, refresh_updates=20, batch_size=32, width=16, depth=1, embedding_dim=8, num_steps=4, guidance_ramp=0
)


def rows(size: int, centre: float, seed: int) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observations = centre + 0.1 * torch.randn(size, 2, generator=generator)
    actions = 2 * torch.rand(size, 1, generator=generator) - 1
    terminations = (torch.rand(size, generator=generator) < 0.3).float()
    return Transitions.create(observations, actions, terminations - 1, observations + 0.1 * actions, terminations)


def replay(offline: int = 300, online: int = 200) -> Replay:
    """Offline rows around -2, online rows around 2, rewards -1 and 0."""
    replay = Replay(SPEC, {Source.OFFLINE: 300, Source.ONLINE: 200})
    replay.offline.append(rows(offline, -2.0, 0))
    replay.online.append(rows(online, 2.0, 1))
    return replay


def refresh(generator: CFDG, replay: Replay, num_updates: int | None = None) -> None:
    generator.begin_refresh(replay, AGENT)
    for _ in range(generator.num_updates if num_updates is None else num_updates):
        generator.update(replay, AGENT)


@pytest.fixture(scope="module")
def trained() -> CFDG:
    """Trained on the two clusters."""
    generator = CFDG(replace(TINY, updates=600, width=64, num_steps=12, learning_rate=3e-3), SPEC, seed=0)
    refresh(generator, replay())
    return generator


def test_labels_choose_the_cluster(trained):
    offline = trained.sample(200, source=Source.GENERATED_OFFLINE)
    online = trained.sample(200, source=Source.GENERATED_ONLINE)
    assert (offline.observations < 0).float().mean() > 0.97
    assert (online.observations > 0).float().mean() > 0.97
    assert (offline.sources == Source.GENERATED_OFFLINE).all() and (online.sources == Source.GENERATED_ONLINE).all()


def test_rows_are_valid(trained):
    batch = trained.sample(500)
    assert set(batch.terminations.unique().tolist()) == {0.0, 1.0}
    assert set(batch.rewards.unique().tolist()) == {-1.0, 0.0}
    assert batch.actions.abs().max() <= 1 and len(batch) == 500
    store = replay()
    seen = torch.cat([store.offline.all().observations, store.online.all().observations])
    slack = 0.05 * (seen.amax(0) - seen.amin(0)) + 1e-5
    assert (batch.observations <= seen.amax(0) + slack).all() and (batch.observations >= seen.amin(0) - slack).all()


def test_postprocessing_clips_snaps_thresholds_and_drops():
    model = CFDG(TINY, SPEC, seed=0).model
    model.fit([replay().offline, replay().online], (0.5, 0.5))
    normal = model.normalize(SPEC.flatten(rows(4, 2.0, 2)))
    normal[0], normal[1, 0] = 100.0, torch.nan
    normal[2, SPEC.columns["terminations"]] = 0.49
    normal[3, SPEC.columns["terminations"]] = 0.51
    result = SPEC.unflatten(model.postprocess(normal), Source.GENERATED_ONLINE)
    assert len(result) == 3 and result.actions[0] == 1 and result.rewards[0] == 0
    assert torch.equal(result.observations[0], model.high[:2])
    assert result.terminations.tolist() == [1.0, 0.0, 1.0]


def test_normaliser_weighs_both_pools_alike():
    store = replay(offline=300, online=100)
    model = CFDG(TINY, SPEC, seed=0).model
    model.fit([store.offline, store.online], (0.5, 0.5))
    states = [pool.all().observations for pool in (store.offline, store.online)]
    balanced = torch.cat([states[0], states[1].repeat(3, 1)])
    assert torch.allclose(model.mean[:2], balanced.mean(0), atol=1e-4)
    assert torch.allclose(model.std[:2], balanced.std(0), rtol=1e-2)
    assert model.mean[-1] == 0 and model.std[-1] == 1  # terminations are not normalised
    store.offline.fields["observations"][:] = 5.0
    model.fit([store.offline, store.online], (1.0, 0.0))
    assert (model.std[:2] == 1e-3).all()


def test_one_empty_pool_is_no_obstacle():
    for store, source in ((replay(online=0), Source.GENERATED_OFFLINE), (replay(offline=0), Source.GENERATED_ONLINE)):
        generator = CFDG(TINY, SPEC, seed=0)
        refresh(generator, store)
        assert len(generator.sample(10)) == len(generator.sample(10, source=source)) == 10
        labels = generator.real_rows(store).sources
        assert labels.unique().tolist() == [int(source == Source.GENERATED_ONLINE)]


def test_guidance_grows_with_the_online_rows():
    generator = CFDG(replace(TINY, guidance=2.0, guidance_ramp=400), SPEC, seed=0)
    generator.model.fit([replay().offline, replay().online], (0.5, 0.5))
    plain = CFDG(replace(TINY, guidance=1.0, guidance_ramp=0), SPEC, seed=0)
    plain.model.load_state_dict(generator.model.state_dict())
    assert torch.equal(generator.sample(8).observations, plain.sample(8).observations)


def test_later_refreshes_are_short_and_warm():
    generator, store = CFDG(TINY, SPEC, seed=0), replay()
    assert generator.num_updates == 40
    refresh(generator, store)
    assert generator.num_updates == 20
    weights = generator.model.network.encode.weight.clone()
    generator.begin_refresh(store, AGENT)
    assert torch.equal(generator.training.network.encode.weight, weights)
    fresh = CFDG(replace(TINY, from_scratch=True), SPEC, seed=0)
    refresh(fresh, store)
    assert fresh.num_updates == 40
    weights = fresh.model.network.encode.weight.clone()
    fresh.begin_refresh(store, AGENT)
    assert not torch.allclose(fresh.training.network.encode.weight, weights, atol=1e-3)


def test_restoring_inside_a_refresh_continues_bit_for_bit():
    store, first, second = replay(), CFDG(TINY, SPEC, seed=0), CFDG(TINY, SPEC, seed=7)
    refresh(first, store, 15)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(25):
        first.update(store, AGENT)
        second.update(store, AGENT)
    for name, weights in first.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]) or weights.isnan().any()
    assert first.num_updates == second.num_updates == 20
    assert torch.equal(first.sample(8).observations, second.sample(8).observations)


def test_training_in_bf16_is_finite_and_gives_float32_rows():
    """One autocast context around everything is the same as one around each update."""
    generator, other, store = CFDG(TINY, SPEC, seed=0), CFDG(TINY, SPEC, seed=0), replay()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refresh(generator, store)
        batch = generator.sample(50)
    other.begin_refresh(store, AGENT)
    for _ in range(other.num_updates):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other.update(store, AGENT)
    assert torch.equal(generator.model.network.encode.weight, other.model.network.encode.weight)
    assert generator.num_dropped == 0 and all(p.dtype == torch.float32 for p in generator.model.parameters())
    assert batch.observations.dtype == batch.rewards.dtype == torch.float32


def test_the_papers_solver_makes_rows(trained):
    paper = CFDG(replace(trained.config, solver="heun", num_steps=64), SPEC, seed=0)
    paper.model.load_state_dict(trained.model.state_dict())
    batch = paper.sample(200)
    assert abs(batch.observations.mean() - 2.0) < 0.2


def test_a_fresh_process_samples_the_same_rows(trained, tmp_path):
    trained.save_pretrained(tmp_path / "saved")
    assert {"config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors", "sha256.json"} <= {
        path.name for path in (tmp_path / "saved").iterdir()
    }
    code = (
        "import sys, torch; from o2o_diffusion.generators.cfdg import CFDG\n"
        "torch.set_num_threads(1)\n"
        "torch.save(CFDG.from_pretrained(sys.argv[1], seed=5).sample(50).observations, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "saved", tmp_path / "rows.pt"], check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = CFDG.from_pretrained(tmp_path / "saved", SPEC, seed=5).sample(50).observations
    torch.set_num_threads(threads)
    assert torch.equal(torch.load(tmp_path / "rows.pt", weights_only=True), here)


def test_folders_that_do_not_fit_are_refused(trained, tmp_path):
    folder = tmp_path / "saved"
    with pytest.raises(InputError, match="not a saved generator"):
        CFDG.from_pretrained(folder)
    trained.save_pretrained(folder)
    with pytest.raises(InputError, match=r"observations 2, actions 1.*; the task has observations 3, actions 1"):
        CFDG.from_pretrained(folder, TransitionSpec(3, 1))
    weights = folder / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InputError, match="altered"):
        CFDG.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(InputError, match="missing"):
        CFDG.from_pretrained(folder)


def test_a_pretrained_generator_is_refreshed_warm(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    generator = CFDG(replace(TINY, pretrained=str(tmp_path)), SPEC, seed=1)
    assert generator.num_updates == 20 and generator.model.config["width"] == 64
    refresh(generator, replay())
    assert len(generator.sample(5)) == 5


@pytest.mark.parametrize("path", sorted(Path("configs/generator").glob("*.yaml")), ids=lambda path: path.stem)
def test_settings_are_known(path):
    settings = OmegaConf.load(path)
    target = {"CFDG": CFDG, "NoGenerator": NoGenerator}.get(settings.pop("target").rpartition(".")[2])
    if target is not None:
        OmegaConf.merge(OmegaConf.structured(target.Config), settings)


def test_no_generator_makes_no_rows():
    generator = NoGenerator(NoGenerator.Config(), SPEC, seed=0)
    assert generator.generated.share == 0 and generator.num_samples == 0 and len(generator.sample(5)) == 0
    generator.load_state_dict(generator.state_dict())
