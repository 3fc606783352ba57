import subprocess
import sys
from pathlib import Path

from o2o_diffusion.schedule import per_block, per_episode, per_step


def test_the_protocols_hold_methods_that_come_later():
    stubs = Path(__file__).parent / "later_methods.py"
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(stubs)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_cadences_owe_what_they_say():
    assert [per_step(5).owed(step, None) for step in (1, 2)] == [5, 5]
    assert [per_block(1000, 10_000).owed(step, None) for step in (999, 1000, 1001, 2000)] == [0, 10_000, 0, 10_000]
    assert [per_episode(2).owed(7, length) for length in (None, 7)] == [0, 14]
