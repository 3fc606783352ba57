"""Signals and exit codes of the commands: D12, D13, F6."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from o2o_diffusion.command_line import main
from o2o_diffusion.training.checkpoint import newest_whole

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "finetune.py"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143)])
def test_d12_f6_a_signal_saves_and_its_code_tells_which(tmp_path, tiny_run, number, code):
    folder = tmp_path / "run"
    own = [*tiny_run, "generator=none", "learner=iql", "pretrain_updates=100000", f"output={folder}"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *own], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "output" in line:
            break
    process.send_signal(number)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == code and f"--resume {folder}" in shown
    assert newest_whole(folder / "checkpoints")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/data/rows.npz"), "[Errno 28] No space left on device: '/data/rows"),
        (PermissionError(13, "Permission denied", "/data"), "[Errno 13] Permission denied: '/data'"),
        (MemoryError(), "out of memory"),
    ],
)
def test_d13_faults_of_the_machine_are_one_line(error, line, capsys):
    def failing(argv):
        raise error

    with pytest.raises(SystemExit) as leaving:
        main(failing)
    assert leaving.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {line}") and shown.count("\n") == 1
