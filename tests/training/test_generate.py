import shutil
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from builders import refresh
from safetensors.torch import load_file

from o2o_diffusion.command_line import main
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.loading import make_replay
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.pretrained import checksum
from o2o_diffusion.training.generate import generate_file
from o2o_diffusion.types import Source

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import generate

TINY = CFDG.Config(
    updates=20, batch_size=32, width=16, depth=1, embedding_dim=8, sampling=Sampling(num_steps=4), sample_batch_size=16
)
PENDULUM = {"dataset": "pendulum", "environment": {"id": "Pendulum-v1"}}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    """Minari's store, in a folder of the test's own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def folder(tmp_path, pendulum_table) -> str:
    return save(tmp_path / "generator", pendulum_table)


def save(folder: Path, table: str, provenance: dict = PENDULUM, **changes) -> str:
    """A generator trained for 20 updates on `table`, saved with `provenance`."""
    dataset = load_dataset(table)
    generator = CFDG(replace(TINY, **changes), dataset.spec, seed=0)
    refresh(generator, make_replay(dataset))
    generator.save_pretrained(folder, provenance)
    return str(folder)


def script(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of scripts/generate.py."""
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main(generate.generate)
    shown = capsys.readouterr()
    return int(leaving.value.code or 0), shown.out, shown.err


def test_files_hold_the_same_rows_in_d4rl_columns(folder, tmp_path, monkeypatch, capsys):
    for suffix in ("npz", "hdf5", "safetensors"):
        path = tmp_path / "rows" / f"rows.{suffix}"
        code, shown, _ = script(monkeypatch, capsys, f"generator={folder}", "num_samples=40", f"output={path}")
        assert code == 0 and shown == f"wrote 40 rows to {path}\n"
    rows = dict(np.load(tmp_path / "rows" / "rows.npz"))
    assert rows["observations"].shape == (40, 3) and (np.abs(rows["actions"]) <= 1).all()
    assert (rows["terminals"] ^ rows["timeouts"]).all()  # every row ends a segment
    with h5py.File(tmp_path / "rows" / "rows.hdf5") as file:
        others = [{name: np.asarray(file[name]) for name in file}]
    others += [{name: part.numpy() for name, part in load_file(tmp_path / "rows" / "rows.safetensors").items()}]
    for other in others:
        assert set(other) == set(rows) and all(np.array_equal(other[name], rows[name]) for name in rows)
    for suffix in ("npz", "hdf5"):
        dataset = load_dataset(str(tmp_path / "rows" / f"rows.{suffix}"))
        assert len(dataset.episodes) == dataset.num_transitions == 40
    assert len(list((tmp_path / "rows").iterdir())) == 3


def test_batches_do_not_change_the_rows(folder, tmp_path, draw):
    path, _ = generate_file(folder, 40, "offline", str(tmp_path / "rows.npz"), seed=3)
    rows = draw(CFDG.from_pretrained(folder, seed=3), 40, source=Source.GENERATED_OFFLINE)  # in batches of 16, too
    assert np.array_equal(np.load(path)["observations"], rows.observations.numpy())


def test_a_minari_dataset_is_read_back_by_minari_and_by_our_loader(folder, tmp_path, monkeypatch, capsys):
    arguments = [f"generator={folder}", "num_samples=40", "label=offline"]
    code, shown, told = script(monkeypatch, capsys, *arguments, "output=my/pendulum-v0")
    assert code == 0 and "wrote 40 rows" in shown
    assert "warning: 40 generated rows take about 0.0006 GB" in told.splitlines()[0]  # before anything is drawn
    script(monkeypatch, capsys, *arguments, f"output={tmp_path / 'rows.npz'}")
    rows = np.load(tmp_path / "rows.npz")

    import minari

    dataset = minari.load_dataset("my/pendulum-v0")
    assert dataset.total_steps == dataset.total_episodes == 40 and dataset.spec.env_spec.id == "Pendulum-v1"
    for k, episode in enumerate(dataset.iterate_episodes()):
        assert np.array_equal(episode.observations, [rows["observations"][k], rows["next_observations"][k]])
        assert np.allclose(episode.actions, 2 * rows["actions"][k])  # Pendulum's box
        assert episode.terminations.tolist() == [rows["terminals"][k]] == [not episode.truncations[0]]
        assert np.allclose(episode.rewards, rows["rewards"][k])
    metadata = dataset.storage.metadata
    assert metadata["generated"] is True and metadata["algorithm_name"] == "CFDG"
    assert metadata["source_datasets"] == ["pendulum"] and metadata["generator_sha256"] == checksum(Path(folder))
    assert "generated by a diffusion model" in metadata["description"] and metadata["generated_episodes"] == [0, 40]
    loaded = load_dataset("my/pendulum-v0")
    assert np.allclose(np.concatenate([e.actions for e in loaded.episodes]), rows["actions"], atol=1e-6)
    assert loaded.environment is not None and loaded.environment.id == "Pendulum-v1"


def test_without_provenance_the_columns_are_plain_vectors(tmp_path, pendulum_table):
    for k, provenance in enumerate([{}, {"environment": {"id": "Hopper-v5"}}, {"environment": {"id": "Mine-v0"}}]):
        saved = save(tmp_path / f"bare-{k}", pendulum_table, provenance)
        generate_file(saved, 5, "offline", f"my/bare-v{k}")
        loaded = load_dataset(f"my/bare-v{k}")
        assert loaded.environment is None and loaded.spec.observation_dim == 3 and loaded.num_transitions == 5


def test_fields_of_a_dataset_come_back_as_they_were(tmp_path, store, maze):
    saved = save(tmp_path / "generator", str(maze), {})
    generate_file(saved, 6, "offline", "my/maze-v0", dataset="o2o/maze-v0")
    real, loaded = load_dataset("o2o/maze-v0"), load_dataset("my/maze-v0")
    assert loaded.observation_keys == real.observation_keys == ("desired_goal", "observation")
    assert loaded.environment == real.environment and loaded.spec == real.spec

    import minari

    fields = minari.load_dataset("my/maze-v0")[0].observations
    assert np.array_equal(fields["achieved_goal"], fields["observation"][:, :2])


@pytest.fixture
def maze(store) -> Path:
    """A recorded PointMaze dataset, whose observations have fields."""
    from o2o_diffusion.environments.recording import Recording, record

    return record(Recording("o2o/maze-v0", "PointMaze_UMaze-v3", num_steps=150, max_episode_steps=50), progress=False)


def test_partial_noising_starts_from_the_rows_of_a_dataset(tmp_path, pendulum_table, monkeypatch, capsys):
    sampling, output = Sampling(num_steps=4, start_sigma=1e-3), tmp_path / "rows.npz"
    saved = save(tmp_path / "near", pendulum_table, sampling=sampling, differences=False)
    arguments = [f"generator={saved}", "num_samples=50", f"output={output}"]
    code, _, line = script(monkeypatch, capsys, *arguments)
    assert code == 2 and "starts from real rows (sampling.start_sigma): give dataset=" in line
    assert not output.exists() and line.count("\n") == 1
    assert script(monkeypatch, capsys, *arguments, f"dataset={pendulum_table}")[0] == 0
    rows, real = (torch.from_numpy(np.load(path)["observations"]) for path in (output, pendulum_table))
    assert torch.cdist(rows, real).amin(1).max() < 0.1


def mistakes(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments that are wrong, and what must be in the line that answers."""
    whole, weights = f"generator={folder / 'generator'}", "diffusion_pytorch_model.safetensors"
    for name in ("altered", "cut", "missing"):
        shutil.copytree(folder / "generator", folder / name)
    data = bytearray((folder / "altered" / weights).read_bytes())
    data[-1] ^= 1
    (folder / "altered" / weights).write_bytes(bytes(data))
    (folder / "cut" / weights).write_bytes(bytes(data[:1000]))
    (folder / "missing" / "sha256.json").unlink()
    (folder / "store" / "my" / "taken-v0").mkdir(parents=True)
    (folder / "file").touch()
    observations = np.zeros((200, 4), np.float32)
    flags = {"terminals": np.zeros(200, bool), "timeouts": np.arange(200) == 199}
    other = {"observations": observations, "actions": np.zeros((200, 1)), "rewards": np.zeros(200)}
    np.savez(folder / "other.npz", allow_pickle=False, **(other | flags))
    rows = f"output={folder / 'rows.npz'}"
    return {
        "nothing": ([], "give generator="),
        "no output": ([whole], "output=<file"),
        "no generator": ([f"generator={folder / 'generater'}", rows], "did you mean 'generator'"),
        "neither": ([f"generator={folder / 'none' / 'there'}", rows], "neither a folder nor an id on the hub"),
        "no network": (
            ["generator=someone/hopper", rows],
            "no generator someone/hopper could be downloaded from the hub",
        ),
        "no manifest": ([f"generator={folder / 'missing'}", rows], "is not a saved generator: it has no sha256.json"),
        "altered": ([f"generator={folder / 'altered'}", rows], f"{weights} was altered"),
        "cut": ([f"generator={folder / 'cut'}", rows], f"{weights} was altered"),
        "label": ([whole, rows, "label=onlin"], "did you mean 'online'"),
        "no rows": ([whole, rows, "num_samples=0"], "num_samples is 0"),
        "suffix": ([whole, "output=rows.csv"], "must end in one of .npz, .hdf5, .safetensors, or be a Minari id"),
        "no namespace": ([whole, "output=rows-v0"], "has no namespace"),
        "escape": ([whole, "output=../rows-v0"], "must end in one of"),
        "short namespace": ([whole, "output=m/rows-v0"], "must end in one of"),
        "taken": ([whole, "output=my/taken-v0"], "datasets are never overwritten"),
        "unwritable": ([whole, f"output={folder / 'file' / 'rows.npz'}"], "is not a folder"),
        "other columns": ([whole, rows, f"dataset={folder / 'other.npz'}"], "the task has observations 4"),
        "no dataset": ([whole, rows, "dataset=nothing.npz"], "no file nothing.npz"),
    }


@pytest.mark.parametrize("mistake", [
    "nothing", "no output", "no generator", "neither", "no network", "no manifest", "altered", "cut", "label",
    "no rows", "suffix", "no namespace", "escape", "short namespace", "taken", "unwritable", "other columns",
    "no dataset",
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(folder, tmp_path, mistake, monkeypatch, capsys):
    arguments, expected = mistakes(tmp_path)[mistake]
    before = sorted(tmp_path.rglob("*"))
    code, _, line = script(monkeypatch, capsys, *arguments)
    assert code == 2 and expected in line and line.count("\n") == 1, line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["rows.npz", "my/rows-v0"])
def test_an_interrupted_file_is_not_left_behind(folder, tmp_path, store, output, monkeypatch):
    from o2o_diffusion.data import one_step as episodes
    from o2o_diffusion.training import generate as files

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write", interrupted)
    monkeypatch.setattr(episodes.Layout, "observations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_file(folder, 5, "online", output if "/" in output else str(tmp_path / output))
    assert {path.name for path in tmp_path.iterdir()} <= {"generator", "store"}
    assert not list(store.glob("*")) if store.exists() else True


def test_too_small_a_disk_is_told_before_anything_is_drawn(folder, store, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2e6, 1e6, 1e6))  # pyright: ignore
    arguments = [f"generator={folder}", "output=my/rows-v0", "num_samples=100"]
    code, _, line = script(monkeypatch, capsys, *arguments)
    assert code == 2 and "0.001 GB left" in line and not store.exists()
