import json
import os
import subprocess
import sys
from pathlib import Path

from o2o_diffusion.studies.results import Results, rows_of_runs
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
seeds: 1
"""


def test_a_study_runs_and_writes_its_rows_and_page(tmp_path, pendulum_table):
    (tmp_path / "toy.yaml").write_text(STUDY)
    command = [sys.executable, str(SCRIPT), f"study={tmp_path / 'toy.yaml'}", f"data={Path(pendulum_table).parent}"]
    command += [f"runs={tmp_path / 'runs'}", f"output={tmp_path / 'results'}"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "1 of 1 cells to run" in result.stdout
    (row,) = rows = [json.loads(line) for line in (tmp_path / "results" / "toy.jsonl").read_text().splitlines()]
    assert [point["env_steps"] for point in row["curve"]] == [0, 30, 60]
    assert str(tmp_path) not in json.dumps(row)
    assert unfinished(Study.load(str(tmp_path / "toy.yaml")).cells(), rows) == []
    assert "| none | 1 |" in (tmp_path / "results" / "toy.md").read_text()

    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("summary.json"))
    results = Results(rows_of_runs([folder]), "generator", "nogenerator")
    assert results.groups == [f"{pendulum_table} mixture sac"]
    assert results.scores("nogenerator", results.groups[0], "seed") == [0]
