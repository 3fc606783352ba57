"""Runs of several seeds in one process, against each seed's run alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import leaves

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.iql import IQL
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.checkpoint import load_checkpoint
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import CHECKPOINTS, GROUPS, newest_unfinished, seed_folders
from o2o_diffusion.training.lockstep import Lockstep
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.seeds import SeedRuns, resume, start


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def settings(folder: Path, *overrides: str):
    return compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*overrides, f"output={folder}"])


def assert_close(one, two) -> None:
    """Compare two states: numbers up to rounding in the order of sums, everything else to the bit."""
    one, two = leaves(one), leaves(two)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, float) or (isinstance(value, torch.Tensor) and value.is_floating_point()):
            value, other = torch.as_tensor(value, dtype=torch.float64), torch.as_tensor(two[name], dtype=torch.float64)
            torch.testing.assert_close(other, value, rtol=1e-2, atol=1e-2, equal_nan=True, msg=name)
        else:
            assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name], name


def result(folder: Path) -> dict:
    """The last state of a run, without times, and everything that it logged."""
    state = load_checkpoint(folder / CHECKPOINTS)
    state = {name: part for name, part in state.items() if name not in ("seconds", "logger", "settings")}
    return state | {"lines": [json.loads(line) for line in (folder / "metrics.jsonl").open()]}


@pytest.mark.slow
@pytest.mark.parametrize(("learner", "generator"), [("iql", "cfdg"), ("cal_ql", "none")])  # Cal-QL: after each episode
def test_runs_together_equal_runs_alone(tmp_path, tiny_run, tiny_learner, tiny_generator, learner, generator):
    own = [*tiny_run, *tiny_generator(generator), *tiny_learner(learner)]
    assert start(settings(tmp_path / "both", *own, "num_seeds=2", "seed=4")).execute() == 0
    for seed in (4, 5):
        folder = tmp_path / f"alone{seed}"
        assert start(settings(folder, *own, f"seed={seed}")).execute() == 0
        assert_close(result(tmp_path / "both" / f"seed{seed}"), result(folder))
        assert names(folder) == names(tmp_path / "both" / f"seed{seed}")


def interrupted(folder: Path, *overrides: str) -> SeedRuns:
    """Two runs that stop in the middle of fine-tuning, with a checkpoint every 30 ticks."""
    runs = SeedRuns.create(settings(folder, *overrides, "num_seeds=2", "checkpoint_interval=30", "keep_checkpoints=0"))
    for run in runs.runs:
        run.begin()
    runs.runs[0].session.interrupted = lambda: runs.runs[0].loop.ticks >= 110
    assert not Lockstep([run.loop for run in runs.runs]).run()
    return runs


def finish(runs: Run | SeedRuns) -> bool:
    """Run to the end, without a report."""
    return runs.loop.run() if isinstance(runs, Run) else Lockstep([run.loop for run in runs.runs]).run()


def test_interrupted_runs_are_continued_together_or_alone(tmp_path, tiny_run):
    own = [*tiny_run, "learner=iql", "generator=none"]
    for seed in (0, 1):
        assert Run(settings(tmp_path / f"alone{seed}", *own, f"seed={seed}")).loop.run()
    for name in ("together", "one by one"):
        runs = interrupted(tmp_path / name, *own)
        for path in sorted((runs.folder / "seed1" / CHECKPOINTS).iterdir())[1:]:
            shutil.rmtree(path)  # as if killed before they were written: this run is behind the other
        for folder in [runs.folder] if name == "together" else seed_folders(runs.folder):
            assert finish(resume(str(folder)))
        for seed in (0, 1):
            assert_close(result(runs.folder / f"seed{seed}"), result(tmp_path / f"alone{seed}"))


def test_each_seed_starts_from_its_own_pretraining(tmp_path, tiny_run):
    own = [*tiny_run, "learner=iql", "generator=none", "num_seeds=2"]
    assert start(settings(tmp_path / "pretrained", *own, "online_steps=0")).execute() == 0
    with pytest.raises(InputError, match="every run in it is finished"):
        resume(str(tmp_path / "pretrained"))
    runs = start(settings(tmp_path / "runs", *own, f"pretrained={tmp_path / 'pretrained'}"))
    assert isinstance(runs, SeedRuns)
    for run, folder in zip(runs.runs, seed_folders(tmp_path / "pretrained"), strict=True):
        saved = load_checkpoint(folder / CHECKPOINTS)["learner"]["actor"]
        assert all(torch.equal(value, saved[name]) for name, value in run.loop.learner.actor.state_dict().items())


def test_the_newest_of_several_seeds_is_continued_with_the_others(tmp_path, tiny_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interrupted(Path("runs/several"), *tiny_run, "learner=iql", "generator=none")
    assert newest_unfinished() == Path("runs/several")


WRONG = {
    "in phase 'pretrain': Dimension": lambda loss: loss.mean(),
    "because its updates in phase 'pretrain' would be different": lambda loss: loss * loss.numel(),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_learner_whose_losses_mix_seeds_is_refused(tmp_path, tiny_run, monkeypatch, message):
    value_loss = IQL.value_loss
    monkeypatch.setattr(IQL, "value_loss", lambda *inputs: WRONG[message](value_loss(*inputs)))
    own = settings(tmp_path, *tiny_run, "learner=iql", "generator=none", "num_seeds=2")
    with pytest.raises(InputError, match=f"^setting 'num_seeds': IQL can't be stacked {message}.*; set num_seeds=1$"):
        start(own)


def test_a_tracker_of_one_run_is_refused(tmp_path, tiny_run):
    with pytest.raises(InputError, match="wandb takes one run per process"):
        start(settings(tmp_path, *tiny_run, "num_seeds=2", "logger=wandb"))
