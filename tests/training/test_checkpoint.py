import json

import pytest
import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.training import checkpoint
from o2o_diffusion.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

STATE = {"weights": torch.arange(4.0), "adam": {0: {"step": torch.tensor(3.0)}, 1: [1, 2.5, None, "x"]}, "count": 7}


def test_a_state_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path, 1, STATE)
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded["weights"], STATE["weights"]) and loaded["count"] == 7
    assert loaded["adam"][0]["step"] == 3.0 and loaded["adam"][1] == [1, 2.5, None, "x"]


def test_the_newest_are_kept_by_number_not_by_name(tmp_path):
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000000010", "step_000000011"]
    assert load_checkpoint(tmp_path)["step"] == 11


@pytest.mark.parametrize("file", [checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, file, damage, capsys):
    save_checkpoint(tmp_path, 1, {"weights": torch.zeros(8), "step": 1})
    path = save_checkpoint(tmp_path, 2, {"weights": torch.ones(8), "step": 2}) / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert load_checkpoint(tmp_path)["step"] == 1


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, STATE)
    monkeypatch.setattr(json, "dumps", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 2, STATE)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"] and load_checkpoint(tmp_path)["count"] == 7


def test_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no usable checkpoint"):
        load_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_written_again(tmp_path):
    path = save_checkpoint(tmp_path, 1, STATE) / checkpoint.STATE
    path.write_text("{}")
    save_checkpoint(tmp_path, 1, STATE)
    assert load_checkpoint(tmp_path)["count"] == 7


def test_other_settings_at_the_same_step_are_saved_again(tmp_path):
    save_checkpoint(tmp_path, 1, {"rate": 1}, settings="first")
    save_checkpoint(tmp_path, 1, {"rate": 2}, settings="first")
    assert load_checkpoint(tmp_path)["rate"] == 1
    save_checkpoint(tmp_path, 1, {"rate": 2}, settings="second")
    assert load_checkpoint(tmp_path)["rate"] == 2
