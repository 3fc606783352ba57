"""Data of others: D6, D11, D12, F10, F11, F16, F18."""

import json
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from o2o_diffusion.data import local
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.writing import MANIFEST, new_dataset
from o2o_diffusion.environments.recording import Recording, record
from o2o_diffusion.errors import InputError

COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


@pytest.fixture
def table(pendulum_table) -> dict[str, np.ndarray]:
    return dict(np.load(pendulum_table))


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError) as error:
        load_dataset(str(path))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_d6_f18_an_hdf5_file_reads_no_other_file(tmp_path, table):
    secret = tmp_path / "secret"
    secret.write_bytes(table["rewards"].tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["rewards"] = table["rewards"]
    whole = h5py.VirtualLayout(table["rewards"].shape, table["rewards"].dtype)
    whole[:] = h5py.VirtualSource(tmp_path / "other.h5", "rewards", table["rewards"].shape)
    shape, dtype = table["rewards"].shape, table["rewards"].dtype
    ways = {
        "is a link to the file": lambda file: file.__setitem__("rewards", h5py.ExternalLink("other.h5", "rewards")),
        "is stored in the file": lambda file: file.create_dataset(
            "rewards", shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        ),
        "is a view of other": lambda file: file.create_virtual_dataset("rewards", whole),
    }
    for words, write in ways.items():
        with h5py.File(tmp_path / "data.hdf5", "w") as file:
            for name in COLUMNS:
                if name != "rewards":
                    file[name] = table[name]
            write(file)
        refused(tmp_path / "data.hdf5", f"'rewards' {words}")


WRONG = {
    "flags of NaN": ("terminals", lambda x: np.where(np.arange(len(x)) == 7, np.nan, 0.0), "row 7 is nan, expected 1"),
    "flags of 0.5": ("timeouts", lambda x: np.full(len(x), 0.5), "row 0 is 0.5, expected 1 or 0"),
    "flags as text": ("terminals", lambda x: x.astype(str), "expected true or false"),
    "next of NaN": ("next_observations", lambda x: np.where(x == x[5], np.nan, x), "row 5 is not finite"),
    "complex": ("rewards", lambda x: x.astype(complex), "are complex128, expected real numbers"),
    "text": ("observations", lambda x: x.astype(str), "expected real numbers"),
    "infinite action": ("actions", lambda x: np.where(x == x[3], np.inf, x), "step 3: entry 0 of actions is inf"),
    "NaN reward": ("rewards", lambda x: np.where(x == x[9], np.nan, x), "step 9: rewards is nan"),
    "NaN observation": ("observations", lambda x: np.where(x == x[2], np.nan, x), "is nan, expected a finite"),
}


@pytest.mark.parametrize("what", WRONG)
def test_d11_f11_wrong_numbers_are_refused_with_their_place(tmp_path, table, what):
    column, change, words = WRONG[what]
    np.savez(tmp_path / "data.npz", **table | {column: change(table[column])})
    refused(tmp_path / "data.npz", words)


def test_d11_f9_a_changed_bit_of_a_recording_is_found(store):
    record(Recording("o2o/tiny-v0", "Pendulum-v1", num_steps=200), progress=False)
    data, rng = local.folder_of("o2o/tiny-v0") / "data", random.Random(0)
    assert {path.name for path in data.iterdir()} > {MANIFEST}
    whole = load_dataset("o2o/tiny-v0").fingerprint
    for file in data.iterdir():
        content = file.read_bytes()
        for _ in range(3):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(InputError):
                load_dataset("o2o/tiny-v0")
        file.write_bytes(content)
    assert load_dataset("o2o/tiny-v0").fingerprint == whole


@pytest.mark.parametrize(("spec", "environment"), [(None, None), ("{", "refused"), ("[]", "refused")])
def test_d11_a_dataset_without_environment(store, spec, environment):
    record(Recording("o2o/tiny-v0", "Pendulum-v1", num_steps=200), progress=False)
    data = local.folder_of("o2o/tiny-v0") / "data"
    (data / MANIFEST).unlink()  # as recorded by others
    metadata = json.loads((data / "metadata.json").read_text())
    (data / "metadata.json").write_text(json.dumps(metadata | {"env_spec": spec}))
    if environment is None:
        assert load_dataset("o2o/tiny-v0").environment is None
    else:
        with pytest.raises(InputError, match=r"cannot be read|is not a readable"):
            load_dataset("o2o/tiny-v0")


def test_d12_what_a_killed_recording_left_is_swept_by_the_next(store):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (store / f".writing.tmp-{process.pid}-00000000").mkdir(parents=True)
    with pytest.raises(KeyError), new_dataset("o2o/tiny-v0") as data:
        data.mkdir()
        raise KeyError
    assert not list(store.iterdir())
