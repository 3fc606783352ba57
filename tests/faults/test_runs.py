"""Faults of whole runs: D2, D3, D7, D9, D10, D13, D15, F7, F12, F13, F21."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from builders import leaves
from faults.kills import killed_at

from o2o_diffusion.command_line import main
from o2o_diffusion.errors import Fault, InputError
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.storage import lock
from o2o_diffusion.training.checkpoint import checkpoints, load_checkpoint
from o2o_diffusion.training.faults import ERRORS
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import CHECKPOINTS, GROUPS, SETTINGS, SUMMARY, new_folder
from o2o_diffusion.training.loop import Loop


@pytest.fixture
def run(tmp_path, tiny_run):
    """Create a tiny run without a generator in `tmp_path`/<name>."""

    def create(*overrides: str, name: str = "run") -> Run:
        own = [*tiny_run, "generator=none", "learner=iql", *overrides, f"output={tmp_path / name}"]
        return Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, own))

    return create


def stopped(run: Run, ticks: int) -> Path:
    """Interrupt a new run after `ticks` ticks; returns its folder."""
    run.session.interrupted = lambda: run.loop.ticks >= ticks
    run.session.listen = lambda: None
    assert run.execute() == 130
    return run.folder


def assert_equal(one: Run, two: Run) -> None:
    """Compare everything that is saved but times, to the bit, and the log."""
    states = [{k: v for k, v in r.loop.state_dict().items() if k not in ("seconds", "logger")} for r in (one, two)]
    first, second = map(leaves, states)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, equal_nan=True) if isinstance(
            value, torch.Tensor | float
        ) else None
        assert isinstance(value, torch.Tensor | float) or value == second[name], name
    assert one.loop.logger.path.read_text() == two.loop.logger.path.read_text()


def fail_at(run: Run, step: int, monkeypatch) -> None:
    """Let the environment raise at its call number `step`."""
    environment, calls = run.loop.collector.environment, []
    whole = environment.env.step

    def raising(action):
        calls.append(action)
        if len(calls) == step:
            raise ConnectionError("the simulator\nis gone")
        return whole(action)

    monkeypatch.setattr(environment.env, "step", raising)


def test_d3_f12_a_failing_environment_leaves_a_checkpoint_a_line_and_a_traceback(run, monkeypatch, capsys):
    failing, whole = run(), run(name="whole")
    fail_at(failing, 50, monkeypatch)
    with pytest.raises(SystemExit) as leaving:
        main(lambda argv: failing.execute())
    line = capsys.readouterr().err.splitlines()[-1]
    assert leaving.value.code == 1
    assert line.startswith("error: the environment's step raised ConnectionError: the simulator is gone; continue from")
    assert f"--resume {failing.folder}; traceback in {failing.folder / ERRORS}" in line
    assert "ConnectionError" in (failing.folder / ERRORS).read_text()
    assert load_checkpoint(failing.folder / CHECKPOINTS)["env_steps"] == 49
    resumed = Run.resume(failing.folder)
    assert resumed.execute() == whole.execute() == 0
    assert_equal(resumed, whole)


def test_d2_f13_rare_bad_updates_are_skipped_counted_and_logged(run, capsys):
    part = run()
    draw, numbers = part.loop.draw, iter(range(1000))

    def sometimes_bad():
        batch, metrics = draw()
        return (batch.where(rewards=batch.rewards * torch.nan) if next(numbers) in (3, 12, 13) else batch), metrics

    part.loop.draw = sometimes_bad
    assert part.execute() == 0
    assert "pretrain: 2 updates since the last line were not finite and were skipped" in capsys.readouterr().err
    lines = [json.loads(line) for line in (part.folder / "metrics.jsonl").open()]
    assert [line["skipped_updates"] for line in lines if "skipped_updates" in line] == [1, 2]
    state = leaves(load_checkpoint(part.folder / CHECKPOINTS)["learner"])
    assert all(value.isfinite().all() for value in state.values() if isinstance(value, torch.Tensor))


def test_d2_f13_a_diverged_learner_stops_and_the_last_good_checkpoint_is_named(run):
    part = run("checkpoint_interval=5")
    draw = part.loop.draw
    part.loop.draw = lambda: (draw()[0].where(rewards=torch.tensor(torch.inf)), {})
    with pytest.raises(Fault, match=r"pretrain: the last 10 updates had a loss or gradient that is not finite: it div"):
        part.execute()
    assert len(checkpoints(part.folder / CHECKPOINTS)) == 2 and Run.resume(part.folder).loop.updates == 9


def test_d2_weights_that_are_not_finite_are_never_saved(run):
    part = run()
    folder = stopped(part, 10)
    with torch.no_grad():
        next(part.loop.learner.critic.parameters()).view(-1)[0] = torch.nan
    part.loop.ticks += 1
    with pytest.raises(Fault, match=r"^learner\.critic\.\S+ is not finite, so that no checkpoint was written$"):
        part.loop.save()
    assert Run.resume(folder).loop.ticks == 10


def test_d9_settings_are_written_once_and_a_changed_one_must_be_named(run):
    folder = stopped(run(), 30)
    file = folder / SETTINGS
    text = file.read_text()
    assert Run.resume(folder).execute() == 0 and file.read_text() == text
    for old, new, what in (
        ("discount: 0.99", "discount: 0.98", "discount is 0.98, was 0.99"),
        ("seed: 0", "seed: 8", "seed is 8"),
    ):
        assert text.count(old) == 1 or old == "seed: 0"
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match=f"was changed since the run began: .*{what}.*undo that, or name what"):
            Run.resume(folder)
    file.write_text(text.replace("discount: 0.99", "discount: 0.98"))
    assert Run.resume(folder, ["discount=0.98"]).config.discount == 0.98


@pytest.mark.slow
def test_d9_named_overrides_are_recorded_and_a_finished_run_can_be_made_longer(run):
    folder = stopped(run(), 30)
    text = (folder / SETTINGS).read_text()
    longer = Run.resume(folder, ["online_steps=100"])
    assert longer.config.online_steps == 100 and longer.execute() == 0 and longer.loop.env_steps == 100
    assert (folder / SETTINGS).read_text() == text
    again = Run.resume(folder, ["online_steps=130", "eval_interval=10"])
    assert again.record.overrides == ("online_steps=100", "online_steps=130", "eval_interval=10")
    assert again.execute() == 0 and len(again.loop.replay.online) == 130
    steps = [evaluation["env_steps"] for evaluation in again.loop.evaluations]
    assert steps == [0, 40, 80, 100, 110, 120, 130]
    assert Run.resume(folder).config.online_steps == 130
    with pytest.raises(InputError, match="unknown setting 'onlin_steps'"):
        Run.resume(folder, ["onlin_steps=200"])


def test_d9_d15_a_run_killed_at_any_point_of_its_beginning_can_be_continued_or_started_again(run, tmp_path):
    part, point = run(), 0
    shutil.copytree(part.folder, tmp_path / "empty")
    while True:
        shutil.rmtree(part.folder)
        shutil.copytree(tmp_path / "empty", part.folder)
        killed = killed_at(point, part.begin, part.folder)
        try:
            assert Run.resume(part.folder).loop.ticks == 0
        except InputError:
            assert new_folder(str(part.folder), "") == part.folder  # free
        if not killed:
            break
        point += 1
    assert point > 10 and Run.resume(part.folder).loop.ticks == 0


def test_d7_f21_a_folder_in_use_is_refused(run, tmp_path):
    first = run("logger.progress=false")
    second = run()
    with lock(first.folder), pytest.raises(InputError, match="is in use by another process"):
        second.execute()
    folder = stopped(first, 10)
    with pytest.raises(InputError, match="another process has run in"):
        second.execute()
    third, fourth = Run.resume(folder), Run.resume(folder)
    assert third.execute() == 0
    text = third.loop.logger.path.read_text()
    with pytest.raises(InputError, match="another process has run in"):
        fourth.execute()
    assert third.loop.logger.path.read_text() == text and {p.name for p in tmp_path.iterdir()} == {"run"}


def test_f21_a_lock_of_a_killed_process_is_free(tmp_path):
    child = os.fork()
    if child == 0:
        with lock(tmp_path / "run"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with lock(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_d10_a_log_shorter_than_recorded_is_not_padded(run, capsys):
    folder = stopped(run(), 55)
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert Run.resume(folder).execute() == 0
    assert "metrics.jsonl is shorter than at the checkpoint: lines are missing" in capsys.readouterr().err
    assert b"\0" not in path.read_bytes() and [json.loads(line) for line in path.read_text().splitlines()]


def test_d13_f7_a_full_disk_at_a_checkpoint_is_a_warning_and_the_next_one_is_written(run, monkeypatch, capsys):
    part, calls = run("checkpoint_interval=20"), []
    import o2o_diffusion.training.checkpoint as module

    write = module.save_file

    def full(*arguments):
        calls.append(arguments)
        if len(calls) in (2, 3):
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(module, "save_file", full)
    assert part.execute() == 0 and (part.folder / SUMMARY).exists()
    shown = capsys.readouterr().err
    assert shown.count("can't be written: [Errno 28] No space left on device; the run goes on") == 2
    assert f"checkpoint {part.folder / CHECKPOINTS / 'step_000000020'} of " in shown and "bytes" in shown


def test_d13_a_full_disk_at_the_end_names_what_is_left(run, monkeypatch):
    part = run()
    monkeypatch.setattr(part.loop, "run", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device", "x")))
    with pytest.raises(Fault, match=r"No space left on device: 'x'; continue from step_000000000 with --resume"):
        part.execute()


def test_f7_lines_that_can_not_be_written_are_written_later(tmp_path, monkeypatch):
    from o2o_diffusion.storage import Lines

    lines, opened = Lines(tmp_path / "lines"), Path.open
    assert lines.append("first") is None
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    assert str(lines.append("second")) == "full"
    monkeypatch.setattr(Path, "open", opened)
    (tmp_path / "lines").write_text("first\nsec")  # written in part
    assert lines.append("third") is None and (tmp_path / "lines").read_text() == "first\nsecond\nthird\n"
    assert lines.flush() == 19 and lines.cut(6) and not lines.cut(100)
    lines.append("new")
    assert (tmp_path / "lines").read_text() == "first\nnew\n"
