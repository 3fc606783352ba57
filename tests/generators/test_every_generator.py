"""Every file in configs/generator names a generator that keeps the contract; diffusion generators promise more."""

from dataclasses import fields

import pytest
import torch
from builders import LinearPolicy, build, make_batch, make_replay, names, refresh

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.base import DiffusionGenerator
from o2o_diffusion.replay import Replay
from o2o_diffusion.training.checkpoint import load_checkpoint, save_checkpoint
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.types import GENERATED, REAL, Source

AGENT = LinearPolicy()
FILES = names("generator")
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
DIFFUSION = pytest.mark.parametrize(
    "path",
    [path for path in FILES if isinstance(build("generator", path), DiffusionGenerator)],
    ids=lambda path: path.stem,
)


def real(offline: int = 150, online: int = 90) -> Replay:
    """Real rows, and room for generated ones of both labels."""
    replay = make_replay(offline=offline, online=online, generated_offline=200, generated_online=200)
    replay.replace_generated({})
    return replay


@EVERY
def test_refreshes_finitely_and_gives_valid_rows(path, draw):
    generator, replay = build("generator", path), real()
    for _ in range(2):
        for metrics in refresh(generator, replay, AGENT):
            assert all(value.isfinite() and not value.requires_grad for value in metrics.values())
    share, rows = generator.share(replay), generator.next_refresh(replay).rows
    assert 0 <= share.share <= 1 and (share.share == 0 or rows or share.at_batch_time)
    for source, count in share.counts(rows or 40).items():
        batch = draw(generator, count, source=source, replay=replay, agent=AGENT)
        assert len(batch) <= count and (batch.sources == source).all() and (len(batch) > 0 or share.share == 0)
        assert generator.spec.flatten(batch).isfinite().all() and (batch.actions.abs() <= 1).all()
        assert set(batch.terminations.unique().tolist()) <= {0.0, 1.0}
        assert (batch.weights == 1).all() and batch.discounts.isnan().all()


@EVERY
def test_the_capacity_of_its_pools_is_known_from_an_empty_replay(path):
    generator, empty = build("generator", path), Replay(real().spec)
    capacities = generator.share(empty).counts(generator.next_refresh(empty).rows)
    for replay in (real(), real(offline=0), real(online=0)):
        counts = generator.share(replay).counts(generator.next_refresh(replay).rows)
        assert all(count <= capacities[source] for source, count in counts.items())


@EVERY
def test_one_pool_alone_is_no_obstacle(path):
    for replay in (real(online=0), real(offline=0)):
        refresher = Refresher(build("generator", path))
        verdict = refresher.refresh(replay, AGENT)
        assert replay.num_generated <= verdict.rows <= verdict.asked_rows
        assert len(replay.offline) + len(replay.online) == replay.num_real  # real rows are never touched


@EVERY
@pytest.mark.parametrize("stop", [2, 9, 17])
def test_restoring_inside_a_refresh_continues_bit_for_bit(path, stop, draw, tmp_path):
    replay, first, second = real(), build("generator", path, seed=0), build("generator", path, seed=7)
    total = first.next_refresh(replay).updates
    stop = min(stop, total)
    refresh(first, replay, AGENT, num_updates=stop)
    save_checkpoint(tmp_path, stop, first.state_dict())
    second.load_state_dict(load_checkpoint(tmp_path))
    for _ in range(total - stop):
        first.update(replay, AGENT)
        second.update(replay, AGENT)
    assert first.next_refresh(replay) == second.next_refresh(replay)
    options = {"replay": replay, "agent": AGENT}
    assert torch.equal(*(first.spec.flatten(draw(generator, 8, **options)) for generator in (first, second)))


@EVERY
def test_a_state_of_another_kind_is_refused(path):
    generator = build("generator", path)
    with pytest.raises(ValueError, match="expected"):
        generator.load_state_dict(generator.state_dict() | {"another part": 0})


@EVERY
def test_depends_on_its_seed_only(path, draw):
    rows = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator, replay = build("generator", path, seed=3), real()
        refresh(generator, replay, AGENT)
        rows.append(generator.spec.flatten(draw(generator, 8, replay=replay, agent=AGENT)))
        assert torch.get_rng_state().equal(torch.random.manual_seed(global_seed).get_state())
    assert torch.equal(*rows)


@EVERY
def test_real_rows_of_a_batch_are_never_changed(path):
    generator, replay = build("generator", path), real()
    refresh(generator, replay, AGENT)
    batch = replay.gather(replay.union(torch.arange(40)))
    sources = torch.where(torch.arange(40) % 3 == 0, batch.sources + int(GENERATED[0] - REAL[0]), batch.sources)
    marked = batch.where(sources=sources)
    made = generator.augment(marked, replay=replay, agent=AGENT)
    assert len(made) == 40 and torch.equal(made.sources, sources) and made.is_generated.sum() == 14
    for field in fields(made):
        kept, before = (getattr(rows, field.name)[~marked.is_generated] for rows in (made, marked))
        assert torch.equal(kept.nan_to_num(), before.nan_to_num()), field.name
    if generator.share(replay).at_batch_time:
        assert (made.returns[made.is_generated] == -torch.inf).all()
        assert not torch.equal(generator.spec.flatten(made), generator.spec.flatten(marked))


@DIFFUSION
def test_a_diffusion_generator_makes_as_many_rows_as_asked(path, draw):
    for replay in (real(), real(online=0), real(offline=0)):
        generator = build("generator", path)
        refresh(generator, replay, AGENT)
        for source in GENERATED:
            assert len(draw(generator, 10, source=source, replay=replay, agent=AGENT)) == 10


@DIFFUSION
def test_a_training_batch_holds_its_mix_exactly(path):
    for replay in (real(), real(online=0), real(offline=0)):
        generator = build("generator", path)
        offline, online = generator.training_mix(replay)
        assert offline + online == pytest.approx(1)
        sources = generator.real_rows(replay).sources
        assert abs(int((sources == Source.ONLINE).sum()) - online * generator.config.batch_size) <= 1


@DIFFUSION
def test_a_refresh_says_what_the_settings_say(path):
    generator = build("generator", path, first_refresh=7, refresh_interval=5, num_samples=9, **{"gate.auc": 0.7})
    batch = make_batch(8)
    planned = generator.next_refresh(real())
    assert (planned.first, planned.interval, planned.rows, planned.gate.auc) == (7, 5, 9, 0.7)
    assert generator.augment(batch, replay=real(), agent=AGENT) is batch  # its rows come from the pools


@DIFFUSION
def test_a_saved_folder_gives_the_same_rows(path, tmp_path, draw):
    generator, replay = build("generator", path), real()
    refresh(generator, replay, AGENT)
    generator.save_pretrained(tmp_path)
    loaded = [type(generator).from_pretrained(tmp_path, seed=5) for _ in range(2)]
    generator.rng, generator.row_rng = ShardedRng(5), ShardedRng(6)
    options = {"replay": replay, "agent": AGENT}
    rows = [generator.spec.flatten(draw(made, 8, **options)) for made in (*loaded, generator)]
    assert torch.equal(rows[0], rows[1]) and torch.allclose(rows[0], rows[2], atol=1e-5)
    assert loaded[0].config.sampling == generator.config.sampling


@DIFFUSION
def test_partial_noising_stays_close_to_real_rows(path, draw):
    replay = real()
    seen, config = replay.offline.all().observations, build("generator", path).config
    unguided = {field.name: 0 for field in fields(config) if field.name.endswith("_scale")}
    distances = {}
    for sigma in (0.01, 80.0):
        sampling = {"sampling.start_sigma": sigma, "sampling.restarts": "null"}
        generator = build("generator", path, differences=False, **sampling, **unguided)
        refresh(generator, replay, AGENT)
        rows = draw(generator, 20, replay=replay, agent=AGENT)
        distances[sigma] = torch.cdist(rows.observations, seen).amin(1).mean()
    assert distances[0.01] < 0.1 < distances[80.0]
    with pytest.raises(InputError, match=r"'generator\.sampling\.start_sigma' needs offline rows"):
        draw(generator, 5, agent=AGENT)


@DIFFUSION
@pytest.mark.parametrize("solver", ["dpm", "heun"])
def test_both_solvers_make_rows(path, solver, draw):
    sampling = {"sampling.solver": solver, "sampling.num_steps": 3, "sampling.restarts": 1}
    generator, replay = build("generator", path, **sampling), real()
    refresh(generator, replay, AGENT)
    assert len(draw(generator, 10, replay=replay, agent=AGENT)) == 10
