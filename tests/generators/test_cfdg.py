import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from builders import raw_batch, refresh

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.none import NoGenerator
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source, Transitions, TransitionSpec

SPEC = TransitionSpec(2, 1)
TINY = CFDG.Config(
    updates=40, refresh_updates=20, batch_size=32, width=16, depth=1, embedding_dim=8, sampling=Sampling(num_steps=4),
    guidance_ramp=0,
)  # fmt: skip


def rows(size: int, center: float, seed: int) -> Transitions:
    """Observations close to `center`, rewards -1 and 0."""
    batch = raw_batch(size, SPEC, seed=seed)
    observations = center + 0.1 * batch.observations
    following = observations + 0.1 * batch.actions
    return batch.where(observations=observations, next_observations=following, rewards=batch.terminations - 1)


def clusters(offline: int = 300, online: int = 200) -> Replay:
    """Offline rows around -2, online rows around 2."""
    replay = Replay(SPEC, {Source.OFFLINE: offline, Source.ONLINE: online})
    replay.offline.append(rows(offline, -2.0, 0))
    replay.online.append(rows(online, 2.0, 1))
    return replay


@pytest.fixture(scope="module")
def trained() -> CFDG:
    """Trained on the two clusters."""
    larger = replace(TINY, updates=600, width=64, learning_rate=3e-3, sampling=Sampling(num_steps=12))
    generator = CFDG(larger, SPEC, seed=0)
    refresh(generator, clusters())
    return generator


def test_labels_choose_the_cluster(trained, draw):
    offline = draw(trained, 200, source=Source.GENERATED_OFFLINE)
    online = draw(trained, 200)
    assert (offline.observations < 0).float().mean() > 0.97
    assert (online.observations > 0).float().mean() > 0.97
    assert (offline.sources == Source.GENERATED_OFFLINE).all() and (online.sources == Source.GENERATED_ONLINE).all()


def test_rows_are_valid(trained, draw):
    batch = draw(trained, 500)
    assert set(batch.terminations.unique().tolist()) == {0.0, 1.0}
    assert set(batch.rewards.unique().tolist()) == {-1.0, 0.0}
    assert batch.actions.abs().max() <= 1 and len(batch) == 500
    replay = clusters()
    seen = torch.cat([replay.offline.all().observations, replay.online.all().observations])
    slack = 0.05 * (seen.amax(0) - seen.amin(0)) + 1e-5
    assert (batch.observations <= seen.amax(0) + slack).all() and (batch.observations >= seen.amin(0) - slack).all()


def test_postprocessing_clips_snaps_thresholds_and_drops():
    model, replay = CFDG(TINY, SPEC, seed=0).model, clusters()
    model.fit([replay.offline, replay.online], (0.5, 0.5))
    model.layout.labels.outcomes.fill_(torch.nan)  # terminations are the denoiser's
    normal = model.layout.encode(SPEC.flatten(rows(4, 2.0, 2)), 1)
    normal[0], normal[1, 0] = 100.0, torch.nan
    normal[2, SPEC.columns["terminations"]] = 0.49
    normal[3, SPEC.columns["terminations"]] = 0.51
    result = SPEC.unflatten(model.layout.decode(normal, 1), Source.GENERATED_ONLINE)
    assert len(result) == 3 and result.actions[0] == replay.online.all().actions.max()
    assert torch.equal(result.observations[0], replay.online.all().observations.amax(0))
    assert result.terminations.tolist() == [1.0, 0.0, 1.0]


def test_the_normalizer_weighs_both_pools_alike():
    replay, model = clusters(offline=300, online=100), CFDG(TINY, SPEC, seed=0).model
    model.fit([replay.offline, replay.online], (0.5, 0.5))
    states = [pool.all().observations for pool in (replay.offline, replay.online)]
    balanced = torch.cat([states[0], states[1].repeat(3, 1)])
    layout = model.layout
    assert torch.allclose(layout.mean[:2], balanced.mean(0), atol=1e-4)
    assert torch.allclose(layout.std[:2], balanced.std(0), rtol=1e-2)
    assert layout.mean[-1] == 0 and layout.std[-1] == 1  # terminations are not normalized
    replay.offline.fields["observations"][:] = 5.0
    model.fit([replay.offline, replay.online], (1.0, 0.0))
    assert (layout.std[:2] == 0).all() and (layout.decode(torch.ones(3, SPEC.row_dim), 0)[:, :2] == 5).all()


def test_a_batch_at_training_has_both_labels_or_all_of_one(draw):
    generator = CFDG(TINY, SPEC, seed=0)
    assert [generator.training_mix(clusters(*sizes)) for sizes in ((9, 9), (9, 0), (0, 9))] == [
        (0.5, 0.5), (1.0, 0.0), (0.0, 1.0),
    ]  # fmt: skip
    for replay, source in (
        (clusters(online=0), Source.GENERATED_OFFLINE),
        (clusters(offline=0), Source.GENERATED_ONLINE),
    ):
        generator = CFDG(TINY, SPEC, seed=0)
        refresh(generator, replay)
        assert len(draw(generator, 10)) == len(draw(generator, 10, source=source)) == 10
        assert generator.real_rows(replay).sources.unique().tolist() == [int(source == Source.GENERATED_ONLINE)]


def test_guidance_grows_with_the_online_rows(draw):
    generator, replay = CFDG(replace(TINY, guidance=2.0, guidance_ramp=400), SPEC, seed=0), clusters()
    generator.model.fit([replay.offline, replay.online], (0.5, 0.5))
    plain = CFDG(replace(TINY, guidance=1.0, guidance_ramp=0), SPEC, seed=0)
    plain.model.load_state_dict(generator.model.state_dict())
    assert torch.equal(draw(generator, 8).observations, draw(plain, 8).observations)


def test_later_refreshes_are_short_and_warm():
    generator, replay = CFDG(TINY, SPEC, seed=0), clusters()
    assert generator.next_refresh(replay).updates == 40
    refresh(generator, replay)
    assert generator.next_refresh(replay).updates == 20
    weights = generator.model.network.encode.weight.clone()
    generator.begin_refresh(replay, NoAgent())
    assert torch.equal(generator.training.network.encode.weight, weights)
    fresh = CFDG(replace(TINY, from_scratch=True), SPEC, seed=0)
    refresh(fresh, replay)
    assert fresh.next_refresh(replay).updates == 40
    weights = fresh.model.network.encode.weight.clone()
    fresh.begin_refresh(replay, NoAgent())
    assert not torch.allclose(fresh.training.network.encode.weight, weights, atol=1e-3)


def test_restoring_inside_a_refresh_continues_bit_for_bit(draw):
    replay, first, second = clusters(), CFDG(TINY, SPEC, seed=0), CFDG(TINY, SPEC, seed=7)
    refresh(first, replay, num_updates=15)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(25):
        first.update(replay, NoAgent())
        second.update(replay, NoAgent())
    for name, weights in first.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]) or weights.isnan().any()
    assert first.next_refresh(replay).updates == second.next_refresh(replay).updates == 20
    assert torch.equal(draw(first, 8).observations, draw(second, 8).observations)


def test_training_in_bf16_is_finite_and_gives_float32_rows(draw):
    """One autocast context around everything is the same as one around each update."""
    generator, other, replay = CFDG(TINY, SPEC, seed=0), CFDG(TINY, SPEC, seed=0), clusters()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refresh(generator, replay)
        batch = draw(generator, 50)
    other.begin_refresh(replay, NoAgent())
    for _ in range(TINY.updates):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            other.update(replay, NoAgent())
    assert torch.equal(generator.model.network.encode.weight, other.model.network.encode.weight)
    assert generator.num_dropped == 0 and all(p.dtype == torch.float32 for p in generator.model.parameters())
    assert batch.observations.dtype == batch.rewards.dtype == torch.float32


def test_the_papers_solver_makes_rows(trained, draw):
    paper = CFDG(replace(trained.config, sampling=Sampling(solver="heun", num_steps=64)), SPEC, seed=0)
    paper.model.load_state_dict(trained.model.state_dict())
    assert abs(draw(paper, 200).observations.mean() - 2.0) < 0.2


FRESH_PROCESS = """
import sys, torch
from o2o_diffusion.agents import NoAgent
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import Source

torch.set_num_threads(1)
generator = CFDG.from_pretrained(sys.argv[1], seed=5)
options = {"source": Source.GENERATED_ONLINE, "replay": Replay(generator.spec), "agent": NoAgent()}
torch.save(generator.sample(50, **options).observations, sys.argv[2])
"""


def test_a_fresh_process_samples_the_same_rows(trained, tmp_path, draw):
    trained.save_pretrained(tmp_path / "saved")
    assert {"config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors", "sha256.json"} <= {
        path.name for path in (tmp_path / "saved").iterdir()
    }
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, tmp_path / "saved", tmp_path / "rows.pt"], check=True)
    here = draw(CFDG.from_pretrained(tmp_path / "saved", SPEC, seed=5), 50).observations
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


def test_a_pretrained_generator_is_refreshed_warm(trained, tmp_path, draw):
    trained.save_pretrained(tmp_path)
    generator, replay = CFDG(replace(TINY, pretrained=str(tmp_path)), SPEC, seed=1), clusters()
    assert generator.next_refresh(replay).updates == 20 and generator.model.config["width"] == 64
    refresh(generator, replay)
    assert len(draw(generator, 5)) == 5


def test_no_generator_makes_no_rows(draw):
    generator, replay = NoGenerator(NoGenerator.Config(), SPEC, seed=0), clusters()
    refreshes = generator.next_refresh(replay)
    assert generator.share(replay).share == refreshes.rows == refreshes.updates == len(draw(generator, 5)) == 0
    generator.load_state_dict(generator.state_dict())


def test_labels_are_dropped_at_their_rate():
    generator, batch = CFDG(replace(TINY, label_dropout=0.25), SPEC, seed=0), clusters().online.all()
    labels = torch.cat([generator.conditions(batch) for _ in range(20)])
    assert set(labels.tolist()) == {int(Source.ONLINE), int(generator.model.null)}
    assert abs((labels == generator.model.null).float().mean() - 0.25) < 0.03


def test_a_label_without_rows_is_the_null_label_without_guidance():
    generator, replay = CFDG(TINY, SPEC, seed=0), clusters(online=0)
    refresh(generator, replay)
    x, sigma = torch.randn(4, SPEC.row_dim, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    with torch.no_grad():
        found = generator.denoiser(4, Source.GENERATED_ONLINE, replay, NoAgent())(x, sigma)
        plain, asked = (generator.model(x, sigma, torch.full((4,), label)) for label in (int(generator.model.null), 1))
    torch.testing.assert_close(found, plain)
    assert not torch.allclose(found, asked)


def test_sampling_starts_from_the_highest_noise_level():
    generator = CFDG(TINY, SPEC, seed=0)
    x = generator.start(5_000, clusters())
    assert abs(x.std() / generator.model.sigma_max - 1) < 0.02 and x.mean().abs() < 0.02 * generator.model.sigma_max


def test_partial_noising_starts_at_real_rows_plus_noise():
    generator = CFDG(replace(TINY, sampling=Sampling(start_sigma=0.5)), SPEC, seed=0)
    replay = clusters(offline=1)
    generator.model.fit([replay.offline, replay.online], (0.5, 0.5))
    noise = generator.start(5_000, replay) - generator.model.layout.encode(SPEC.flatten(replay.offline.all()), 1)
    assert abs(noise.std() - 0.5) < 0.01 and noise.mean().abs() < 0.01


def test_lost_rows_are_counted(draw, monkeypatch):
    generator = CFDG(TINY, SPEC, seed=0)
    generator.model.fit([clusters().offline, clusters().online], (0.5, 0.5))
    broken = torch.tensor([torch.nan] * 3 + [0.0] * 7)[:, None]
    monkeypatch.setattr(generator, "denoiser", lambda *_: lambda x, sigma: 0 * x + broken)
    assert len(draw(generator, 10)) == 7 and generator.num_dropped == 3
    assert len(draw(generator, 10)) == 7 and generator.num_dropped == 6
