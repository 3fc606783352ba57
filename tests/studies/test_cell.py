import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from o2o_diffusion.studies.folders import finished, rows_of_runs
from o2o_diffusion.studies.results import Results
from o2o_diffusion.studies.schedule import unfinished
from o2o_diffusion.studies.study import Study

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "study.py"
STUDY = """
axes: {variant: {none: [generator=none]}}
compare: variant
baseline: none
settings: [task.dataset=<data>/pendulum.npz, task.environment=Pendulum-v1, learner=sac, "learner.hidden=[16,16]",
  pretrain_updates=0, warmup_steps=20, online_steps=60, updates_per_step=1, eval_interval=30, eval_episodes=1,
  final_eval_episodes=1]
seeds: 2
"""


@pytest.mark.slow
def test_a_study_runs_and_writes_its_rows_and_page(tmp_path, pendulum_table):
    (tmp_path / "toy.yaml").write_text(STUDY)
    command = [sys.executable, str(SCRIPT), f"study={tmp_path / 'toy.yaml'}", f"data={Path(pendulum_table).parent}"]
    command += [f"runs={tmp_path / 'runs'}", f"output={tmp_path / 'results'}", "stack=2"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 of 2 cells to run" in result.stdout
    rows = [json.loads(line) for line in (tmp_path / "results" / "toy.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert [point["env_steps"] for point in rows[1]["curve"]] == [0, 30, 60]
    assert str(tmp_path) not in json.dumps(rows)
    assert unfinished(Study.load(str(tmp_path / "toy.yaml")).cells(), rows) == []
    assert "| none | 2 | 0, 0 |" in (tmp_path / "results" / "toy.md").read_text()

    rows = rows_of_runs(finished(tmp_path / "runs"), "generator")
    assert [row["cell"] for row in rows] == [{"runs": "pendulum.npz sac", "generator": "none"}] * 2
    results = Results(rows, "generator", "none")
    assert results.scores("none", "pendulum.npz sac", "seed") == [0, 1]
