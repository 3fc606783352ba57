"""Checkpoints and generator folders under kills, damage, other names and other versions: D1, D8, D14, F2, F9, F26."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from builders import build
from faults.alterations import WAYS, altered
from faults.kills import every_kill

from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.pretrained import find_folder, read_settings
from o2o_diffusion.storage import sha256
from o2o_diffusion.training.checkpoint import MANIFEST, TENSORS, checkpoints, load_checkpoint, save_checkpoint


def state(step: int) -> dict:
    return {"weights": torch.full((64,), float(step)), "step": step}


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in checkpoints(folder)]


def spoil(path: Path) -> None:
    content = bytearray((path / TENSORS).read_bytes())
    content[-1] ^= 1
    (path / TENSORS).write_bytes(content)


def test_d1_pruning_keeps_the_newest_whole_checkpoint_and_the_one_just_written(tmp_path):
    for step in (90, 100):
        save_checkpoint(tmp_path, step, state(step), keep=0)
    spoil(tmp_path / "step_000000100")
    save_checkpoint(tmp_path, 95, state(95), keep=2)
    assert steps(tmp_path) == [90, 95, 100] and load_checkpoint(tmp_path)["step"] == 95
    save_checkpoint(tmp_path, 96, state(96), keep=1)
    assert steps(tmp_path) == [96, 100] and load_checkpoint(tmp_path)["step"] == 96
    save_checkpoint(tmp_path, 110, state(110), keep=1)
    assert steps(tmp_path) == [110]
    save_checkpoint(tmp_path, 50, state(50), keep=1)  # of a run resumed further back
    assert steps(tmp_path) == [50, 110]


def test_d8_f2_a_generator_saved_over_another_is_whole_after_a_kill_at_any_point(tmp_path, tmp_path_factory):
    saved = tmp_path_factory.mktemp("saved") / "generator"
    folder, (first, second) = tmp_path / "generator", [build("generator", "synther", seed=seed) for seed in (1, 2)]
    weights = "diffusion_pytorch_model.safetensors"
    known = {sha256((generator.save_pretrained(folder), folder / weights)[1]) for generator in (second, first)}
    shutil.copytree(folder, saved)

    def prepare():
        shutil.rmtree(tmp_path)
        shutil.copytree(saved, folder)

    def check():
        read_settings(find_folder(folder))  # raises InputError unless it is whole
        assert sha256(folder / weights) in known

    assert every_kill(lambda: second.save_pretrained(folder), tmp_path, prepare, check) > 15
    first.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["generator"]


def test_d8_a_generator_moved_aside_is_recovered_on_load(tmp_path):
    build("generator", "synther").save_pretrained(tmp_path / "generator")
    (tmp_path / "generator").rename(tmp_path / ".generator.tmp-999999999-00000000.old")
    assert find_folder(tmp_path / "generator") == tmp_path / "generator"


def test_f2_a_checkpoint_survives_a_kill_at_any_point_of_the_next_save(tmp_path):
    def prepare():
        shutil.rmtree(tmp_path)
        save_checkpoint(tmp_path, 1, state(1), keep=1)

    def check():
        loaded = load_checkpoint(tmp_path)
        assert torch.equal(loaded["weights"], state(loaded["step"])["weights"])

    assert every_kill(lambda: save_checkpoint(tmp_path, 2, state(2), keep=1), tmp_path, prepare, check) > 10
    save_checkpoint(tmp_path, 3, state(3), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000003"]


@pytest.mark.parametrize("how", WAYS)
def test_f9_an_altered_checkpoint_is_passed_over(tmp_path, how, capsys):
    rng = random.Random(how)
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2))
    whole = {file: file.read_bytes() for file in newest.iterdir()}
    for _ in range(5):
        for file in whole:
            altered(file, how, rng)
            assert load_checkpoint(tmp_path)["step"] == 1 and "is damaged (" in capsys.readouterr().out
            file.write_bytes(whole[file])
    assert load_checkpoint(tmp_path)["step"] == 2


def test_d14_f26_only_strict_names_count_in_numeric_order_and_a_renamed_folder_is_damaged(tmp_path, capsys):
    for step in (9, 10):
        save_checkpoint(tmp_path, step, state(step))
    for name in ("step_10 (copy)", "step_9.bak", "step_x", "step_"):
        shutil.copytree(tmp_path / "step_000000009", tmp_path / name)
    assert steps(tmp_path) == [9, 10] and load_checkpoint(tmp_path)["step"] == 10
    save_checkpoint(tmp_path, 11, state(11))
    assert steps(tmp_path) == [10, 11]
    (tmp_path / "step_000000010").rename(tmp_path / "step_12")
    assert load_checkpoint(tmp_path)["step"] == 11
    assert "MANIFEST.json has step 10, expected 12" in capsys.readouterr().out


def test_d14_a_manifest_without_files_is_damaged_and_a_newer_schema_is_another_version(tmp_path, capsys):
    path = save_checkpoint(tmp_path, 1, state(1)) / MANIFEST
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"files": {}}))
    with pytest.raises(InputError, match="no usable checkpoint"):
        load_checkpoint(tmp_path)
    path.write_text(json.dumps({"schema": 99, "version": "9.0", "files": {}}))
    with pytest.raises(InputError, match=r"was written by o2o_diffusion 9\.0, which .* can't restore"):
        load_checkpoint(tmp_path)
