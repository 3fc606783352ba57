import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def script(name: str, *arguments: str, home: Path | None = None, expect: int = 0) -> subprocess.CompletedProcess:
    """Run a script as a user does; on failure show what it printed."""
    environment = os.environ | ({"MINARI_DATASETS_PATH": str(home)} if home else {})
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == expect, result.stderr[-3000:]
    return result


def test_finetune_then_evaluate_under_the_launcher(tmp_path, tiny_run, tiny_cfdg):
    folder = tmp_path / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command = [
        *launcher,
        str(SCRIPTS / "finetune.py"),
        *tiny_run,
        *tiny_cfdg,
        f"output={folder}",
        "--learner",
        "famo2o",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    for shown in ("Pendulum-v1", "after offline pretraining", "learning curve", "generated rows used", "minute"):
        assert shown in result.stdout
    written = {path.name for path in folder.iterdir()}
    assert written == {"settings.yaml", "metrics.jsonl", "summary.json", "curve.png", "checkpoints", "generator"}
    scores = script("evaluate", f"run={folder}", "episodes=2", f"output={tmp_path / 'scores.json'}")
    assert (
        json.loads(scores.stdout)["episodes"] == 2 == len(json.loads((tmp_path / "scores.json").read_text())["returns"])
    )


@pytest.mark.slow
def test_pretrain_is_reused(tmp_path, tiny_run):
    script("pretrain", *tiny_run, "online_steps=0", f"output={tmp_path / 'first'}", "--learner", "iql")
    second = [*tiny_run, "--learner", "iql", "--generator", "none", f"output={tmp_path / 'second'}"]
    script("finetune", *second, f"pretrained={tmp_path / 'first'}")
    assert json.loads((tmp_path / "second" / "summary.json").read_text())["updates"] == 100


@pytest.mark.slow
def test_a_missing_dataset_is_recorded_and_listed(tmp_path):
    task = ["--task", "pointmaze-umaze", "task.recording.num_steps=200"]
    script("record", *task, home=tmp_path)
    assert (tmp_path / "o2o" / "pointmaze" / "umaze-v0" / "data" / "main_data.hdf5").is_file()
    again = script("record", *task, home=tmp_path, expect=2)
    assert "exists" in again.stderr and again.stderr.count("\n") == 1


def test_an_interrupted_run_saves_and_goes_on(tmp_path, tiny_run):
    folder = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "finetune.py"), *tiny_run, "--generator", "none", f"output={folder}"]
    process = subprocess.Popen([*command, "pretrain_updates=100000"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "output" in line:
            break
    process.send_signal(2)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and f"--resume {folder}" in shown
    assert list((folder / "checkpoints").iterdir()) and not (folder / "summary.json").exists()


def mistakes(table: str, folder: Path) -> dict[str, tuple[list[str], str]]:
    """What a user may get wrong, and what must be in the line that answers."""
    pendulum = [f"task.dataset={table}", "task.environment=Pendulum-v1"]
    nan = dict(np.load(table))
    nan["rewards"] = nan["rewards"].copy()
    nan["rewards"][203] = np.nan
    np.savez(folder / "nan.npz", **nan)
    (folder / "file").touch()
    return {
        "unknown learner": ([*pendulum, "--learner", "famo20"], "did you mean 'famo2o'"),
        "unknown setting": ([*pendulum, "onlin_steps=3"], "did you mean 'online_steps'"),
        "wrong type": ([*pendulum, "online_steps=many"], "could not be converted to Integer"),
        "unknown dataset": (["task.dataset=o2o/nothing-v0"], "o2o/nothing-v0"),
        "another environment": ([pendulum[0], "task.environment=Hopper-v5"], "observations [11]"),
        "unknown environment": ([pendulum[0], "task.environment=Pendulam-v1"], "did you mean 'Pendulum"),
        "no environment": ([pendulum[0]], "task.environment="),
        "discrete actions": ([pendulum[0], "task.environment=CartPole-v1"], "Discrete"),
        "nan": ([f"task.dataset={folder}/nan.npz", pendulum[1]], "step 3: rewards is nan"),
        "unwritable output": ([*pendulum, f"output={folder}/file/run"], "can't be written"),
        "not a generator": ([*pendulum, f"generator.pretrained={folder}"], "is not a saved generator"),
        "tracker": ([*pendulum, "logger.tracker=wandbb"], "wandbb"),
        "nothing to resume": (["--resume", str(folder)], "no settings.yaml"),
    }


@pytest.mark.parametrize("mistake", [
    "unknown learner", "unknown setting", "wrong type", "unknown dataset", "another environment", "unknown environment",
    "no environment", "discrete actions", "nan", "unwritable output", "not a generator", "tracker", "nothing to resume",
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, pendulum_table, mistake, capsys, monkeypatch):
    from o2o_diffusion.command_line import main

    monkeypatch.syspath_prepend(str(SCRIPTS))
    import finetune

    arguments, expected = mistakes(pendulum_table, tmp_path)[mistake]
    before = {path.name for path in tmp_path.iterdir()}
    output = [] if "--resume" in arguments or any("output=" in a for a in arguments) else [f"output={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments, *output])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    with pytest.raises(SystemExit) as leaving:
        main(finetune.finetune)
    line = capsys.readouterr().err
    assert leaving.value.code == 2 and expected in line and line.count("\n") == 1, line
    assert {path.name for path in tmp_path.iterdir()} <= before
