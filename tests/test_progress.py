"""A log holds a few plain lines per loop."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from o2o_diffusion.progress import LINES, progress_bar

FINETUNE = Path(__file__).parent.parent / "scripts" / "finetune.py"


def shown(capsys, total: int, **options) -> str:
    """What a loop of `total` steps leaves in a log."""
    with progress_bar("loop", total, **options) as bar:
        for _ in range(total):
            bar.update()
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


@pytest.mark.parametrize("total", [1, 7, 19, 101, 1_000, 12_345])
def test_a_log_has_few_lines_and_no_carriage_returns(capsys, total):
    text = shown(capsys, total)
    lines = text.splitlines()
    assert min(total, 8) <= len(lines) <= LINES + 2 == 12 and "\r" not in text and "\n\n" not in text
    assert lines[0].startswith(f"loop: 0/{total} [") and lines[-1].startswith(f"loop: {total}/{total} [")


def test_no_lines_is_nothing_at_all(capsys):
    assert shown(capsys, 100, lines=0) == shown(capsys, 100, disable=True) == ""


def test_the_whole_output_of_a_run_is_short(tmp_path, tiny_run, tiny_cfdg):
    options = ["learner=iql", "logger.progress=true", f"output={tmp_path / 'run'}"]
    command = [sys.executable, str(FINETUNE), *tiny_run, *tiny_cfdg, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    text = done.stdout.decode()
    assert done.returncode == 0, text[-3_000:]
    assert len(text.splitlines()) <= 200 and "\r" not in text and not re.search(r"\bnan\b", text)
    assert "pretrain: 40/40" in text and "fine-tuning: 80/80" in text
    assert "2 refreshes" in text and not re.search(r"^refresh.*\d+/\d+", text, re.MULTILINE)  # none has a bar in a log
