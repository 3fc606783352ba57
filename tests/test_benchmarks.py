"""The benchmarks' plain learners and their table."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import learners
from o2o_diffusion.types import TransitionSpec

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", learners.REFERENCES)
def test_a_plain_learner_learns(name):
    spec = TransitionSpec(3, 2)
    plain, batch = learners.REFERENCES[name](3, 2, 16), learners.make_batch(spec, 0)
    losses = [plain.update(batch)["critic_loss"] for _ in range(200)]
    assert losses[-1] < losses[0]


def test_a_row_compares_one_and_several_seeds_with_the_plain_learner(monkeypatch):
    monkeypatch.setattr(learners, "SECONDS", 0.01)
    row = learners.measure("pex", "hopper", 8, seeds=2, rounds=1, matmul="highest", limit=1e9)
    assert all(row[f"{kind}_per_second"] > 0 for kind in ("reference", "own", "stacked"))
    assert "| pex | hopper | 8 |" in learners.show({"seeds": 2, "rows": [row]})


def test_the_parts_are_listed():
    listed = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0 and "learners" in listed.stdout and "stacked" in listed.stdout
