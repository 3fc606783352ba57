import json

import pytest
import torch
from accelerate import Accelerator

from o2o_diffusion.errors import InputError
from o2o_diffusion.training.logger import Logger


def logger(folder, **config) -> Logger:
    return Logger(Logger.Config(progress=False, **config), folder, Accelerator(cpu=True), {})


def test_lines_are_json_with_tensors_as_numbers_and_nothing_that_is_not_finite(tmp_path):
    log = logger(tmp_path)
    log.log({"loss": torch.tensor(1.5), "unknown": float("nan"), "kind": "finetune"}, updates=3, env_steps=2)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"updates": 3, "env_steps": 2, "loss": 1.5, "unknown": None, "kind": "finetune"}


def test_a_resumed_run_writes_each_line_once(tmp_path):
    log = logger(tmp_path)
    log.log({"loss": 1.0}, updates=1, env_steps=0)
    state = log.state_dict()
    log.log({"loss": 2.0}, updates=2, env_steps=0)
    again = logger(tmp_path)
    again.load_state_dict(state)
    again.log({"loss": 2.0}, updates=2, env_steps=0)
    assert [json.loads(line)["updates"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_an_unknown_tracker_or_one_that_is_not_installed_is_one_line(monkeypatch):
    with pytest.raises(InputError, match="not one of wandb, tensorboard, null"):
        Logger.check(Logger.Config(tracker="mlflow"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        Logger.check(Logger.Config(tracker="wandb"))
