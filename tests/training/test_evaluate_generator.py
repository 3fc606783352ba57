import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from builders import play, refresh

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.loading import make_replay
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.quality import residuals
from o2o_diffusion.quality.real import RealData
from o2o_diffusion.training.evaluate_generator import Config, environments, evaluate_saved, find_simulators, real_rows
from o2o_diffusion.types import EnvironmentSpec

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_generator.py"
TINY = CFDG.Config(updates=20, batch_size=32, width=16, depth=1, embedding_dim=8, sampling=Sampling(num_steps=4))


@pytest.fixture(scope="module")
def generator(tmp_path_factory, pendulum_table) -> str:
    """A generator that has been trained a little on Pendulum, saved."""
    dataset = load_dataset(pendulum_table)
    made = CFDG(TINY, dataset.spec, seed=0)
    refresh(made, make_replay(dataset))
    folder = tmp_path_factory.mktemp("generator") / "pendulum"
    made.save_pretrained(folder, {"dataset_sha256": dataset.fingerprint})
    return str(folder)


def test_the_script_writes_a_report_and_a_page(tmp_path, generator, pendulum_table):
    overrides = [f"generator={generator}", f"dataset={pendulum_table}", f"output={tmp_path / 'report'}", "rows=200"]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *overrides, "threads=1"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith(("verdict: refused\n- ", "verdict: accepted\n- ")), result.stdout[:300]
    assert (
        "AUC of trees" in result.stdout and "were trained on" in result.stdout
    )  # 400 rows are too few to hold some out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {"generated", "floor", "copier"} == set(report["labels"]["offline"]["auc"])
    assert report["labels"]["offline"]["dynamics_ratio"]["generated"] > 0  # a table names no environment
    assert report["seconds"]["total"] >= report["seconds"]["classifiers"] > 0
    assert (tmp_path / "report" / "page.png").is_file()


def test_rows_of_another_dataset_are_held_out_without_a_note(generator, pendulum_table):
    dataset = load_dataset(pendulum_table)
    config = Config(dataset=pendulum_table, online_dataset=pendulum_table, held_out=pendulum_table, rows=200)
    real, notes = real_rows(config, dataset, {})
    assert (len(real["offline"].held_out), len(real["offline"].training)) == (400, 200)
    _, warned = real_rows(config, dataset, {"dataset_sha256": dataset.fingerprint})
    assert len(warned) == 2 and "were trained on" in warned[0]
    assert len(real["online"].held_out) == 200 and len(notes) == 1 and "may have been trained on" in notes[0]


def test_rows_of_each_label_are_judged_in_their_own_world(pendulum_table):
    data, online = EnvironmentSpec("Hopper-v5"), EnvironmentSpec("Hopper-v5", physics={"gravity": 0.5})
    dataset = replace(load_dataset(pendulum_table), environment=data)
    known = environments(Config(), dataset, {"environment": asdict(online)})
    assert known == [data, online]
    played = {label: play(make_environment(spec), 60) for label, spec in (("offline", data), ("online", online))}
    real = {label: RealData(rows, rows) for label, rows in played.items()}
    simulators, notes = find_simulators(known, real)
    gravities = {label: simulator.body.model.opt.gravity[2] for label, simulator in simulators.items()}
    assert gravities == {"offline": -9.81, "online": -9.81 / 2}
    assert notes[1] == "online: dynamics error against next observations simulated in Hopper-v5 with gravity x 0.5"
    simulators, notes = find_simulators([], real)
    assert not simulators and "predicted by networks" in notes[1]


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path, generator, pendulum_table):
    dataset = load_dataset(pendulum_table)
    with pytest.raises(InputError, match="not a saved generator"):
        evaluate_saved(Config(generator=str(tmp_path), dataset=pendulum_table), dataset)
    result = subprocess.run([sys.executable, str(SCRIPT), f"generator={generator}"], capture_output=True, text=True)
    assert (
        result.returncode == 2 and result.stderr.startswith("error: give generator=") and result.stderr.count("\n") == 1
    )


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(tmp_path, generator, pendulum_table, monkeypatch):
    monkeypatch.setattr(residuals, "UPDATES", 50)
    dataset = load_dataset(pendulum_table)
    config = Config(generator=generator, dataset=pendulum_table, rows=200, output=str(tmp_path))
    first, second = (evaluate_saved(config, dataset)["labels"] for _ in range(2))
    assert first == second
