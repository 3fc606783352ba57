import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from o2o_diffusion.command_line import main
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.loading import MIN_ROWS
from o2o_diffusion.errors import Fault, InputError
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.pretrained import load_generator
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.session import Session
from o2o_diffusion.training.train_generator import GROUPS, GeneratorTraining
from o2o_diffusion.types import Source

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import train_generator  # noqa: E402

TINY = [
    "task.environment=Pendulum-v1", "threads=1", "generator.width=16", "generator.depth=1", "generator.batch_size=32",
    "generator.embedding_dim=8", "generator.updates=30", "generator.sampling.num_steps=4", "quality_rows=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    """No signal handlers."""
    monkeypatch.setattr(Session, "listen", lambda self: None)


def after(num_updates: int):
    """An interruption that comes after so many questions."""
    asked = iter(range(num_updates))
    return lambda: next(asked, None) is None


def train(*arguments: str, interrupted: Any = None) -> int:
    base, overrides = CONFIGS / "train_generator.yaml", [*TINY, *arguments]
    settings = compose(base, GeneratorTraining.Config, GROUPS, overrides)
    return execute(GeneratorTraining(settings), interrupted)


def execute(training: GeneratorTraining, interrupted: Any = None) -> int:
    """Run to the end, or until `interrupted` says so."""
    training.session.interrupted = interrupted or training.session.interrupted
    return training.execute()


def table(path: Path, size: int = 400, **changes: np.ndarray) -> str:
    """An .npz of one truncated episode with Pendulum's dimensions."""
    random = np.random.default_rng(0)
    states = random.normal(size=(size + 1, 3)).cumsum(0).astype(np.float32)
    columns: dict[str, Any] = {
        "observations": states[:-1],
        "actions": random.uniform(-1, 1, (size, 1)),
        "rewards": random.normal(size=size),
        "next_observations": states[1:],
        "terminals": np.zeros(size, bool),
        "timeouts": np.arange(size) == size - 1,
    }
    np.savez(path, allow_pickle=False, **(columns | changes))
    return str(path)


@pytest.mark.parametrize("generator", ["cfdg", "synther", "pgr"])
def test_interrupted_and_resumed_is_the_same_generator(tmp_path, pendulum_table, generator):
    data = [f"task.dataset={pendulum_table}", f"online_dataset={pendulum_table}", f"generator={generator}"]
    data += ["generator.curiosity_updates=5"] if generator == "pgr" else []
    assert train(*data, f"output={tmp_path / 'whole'}") == 0
    assert train(*data, f"output={tmp_path / 'parts'}", interrupted=after(3)) == 130
    for stop in (after(9), None):  # once inside again, then to the end
        assert {path.name for path in tmp_path.iterdir()} == {"whole", "parts.training"}
        resumed = GeneratorTraining.resume(str(tmp_path / "parts"))
        assert execute(resumed, stop) == (130 if stop else 0)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "parts"}
    manifests = [(tmp_path / name / "sha256.json").read_text() for name in ("whole", "parts")]
    assert manifests[0] == manifests[1]  # every file, weights and card included


def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path, pendulum_table):
    output = tmp_path / "generator"
    command = [sys.executable, str(SCRIPTS / "train_generator.py"), f"task.dataset={pendulum_table}", *TINY]
    process = subprocess.Popen(
        [*command, "generator.updates=100000", f"output={output}"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "output" in line:
            break
    process.send_signal(2)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(rf"interrupted after \d+ updates; continue with: --resume {output}\n", shown)
    assert not output.exists() and len(list((tmp_path / "generator.training" / "checkpoints").iterdir())) == 1


def test_a_killed_training_goes_on_from_its_newest_checkpoint(tmp_path, pendulum_table, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def killed() -> bool:
        killed.asked += 1
        if killed.asked > 25:
            raise KeyboardInterrupt
        return False

    killed.asked = 0
    with pytest.raises(KeyboardInterrupt):
        train(f"task.dataset={pendulum_table}", "checkpoint_interval=10", interrupted=killed)
    resumed = GeneratorTraining.resume("auto")
    assert resumed.updates == 20 and resumed.output == Path("generators/pendulum_cfdg")
    assert resumed.execute() == 0 and (tmp_path / "generators" / "pendulum_cfdg" / "sha256.json").is_file()
    assert [path.name for path in (tmp_path / "generators").iterdir()] == ["pendulum_cfdg"]


def test_the_plan_comes_first_and_quality_last(tmp_path, pendulum_table, capsys):
    data = [f"task.dataset={pendulum_table}", f"online_dataset={pendulum_table}"]
    assert train(*data, f"output={tmp_path / 'g'}", "quality_rows=200") == 0
    shown = capsys.readouterr()
    for text in ("400 offline, 400 online", "updates", "30", "1 on cpu, 1 threads", "about a minute", "CFDG"):
        assert text in shown.out, text
    assert re.search(r"judged by held-out rows: (accepted|refused)\n- .*limit.*\n", shown.out) and "loss=" in shown.err
    provenance = json.loads((tmp_path / "g" / "provenance.json").read_text())
    assert provenance["quality"]["rows"] == 200 and provenance["updates"] == 30
    assert {"offline_auc", "online_auc"} <= set(provenance["quality"]["numbers"])
    assert provenance["dataset_sha256"] == load_dataset(pendulum_table).fingerprint
    card = ModelCard.load(tmp_path / "g" / "README.md").content
    assert provenance["quality"]["verdict"] in card and "Pendulum-v1" in card


def test_constant_columns_are_told_and_repeated_exactly(tmp_path, capsys, draw):
    states = np.random.default_rng(0).normal(size=(301, 3)).astype(np.float32)
    states[:, 1] = 0.7
    steps = {"observations": states[:-1], "next_observations": states[1:], "rewards": np.full(300, -0.3)}
    data = table(tmp_path / "constant.npz", 300, **steps)
    assert train(f"task.dataset={data}", f"output={tmp_path / 'g'}", "generator.updates=5") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: constant columns, repeated in new rows: observations[1] = 0.7, rewards = -0.3"]
    rows = draw(load_generator(tmp_path / "g"), 500, source=Source.GENERATED_OFFLINE)
    assert (rows.observations[:, 1] == np.float32(0.7)).all() and (
        rows.next_observations[:, 1] == np.float32(0.7)
    ).all()
    assert (rows.rewards == np.float32(-0.3)).all() and rows.observations[:, 0].std() > 0


def mistakes(folder: Path, pendulum: str) -> dict[str, tuple[list[str], str]]:
    """Arguments that are wrong, and what must be in the line that answers."""
    bad = np.random.default_rng(0).normal(size=(400, 3))
    bad[7, 2] = np.inf
    misspelt = {"next_observation": np.zeros((400, 3))}
    (folder / "cut.npz").write_bytes(Path(pendulum).read_bytes()[:1000])
    (folder / "taken").mkdir()
    (folder / "taken" / "file").touch()
    (folder / "wide.training" / "checkpoints" / "step_000000001").mkdir(parents=True)
    data, few, odd = f"task.dataset={pendulum}", table(folder / "few.npz", 99), table(folder / "odd.npz", **misspelt)
    infinite = f"task.dataset={table(folder / 'inf.npz', observations=bad)}"
    return {
        "infinite": ([infinite], "inf.npz: episode"),
        "infinite column": ([infinite], "entry 2 of observations is inf"),
        "few rows": ([f"task.dataset={few}"], f"few.npz has 99 transitions, a generator needs at least {MIN_ROWS}"),
        "few online rows": ([data, f"online_dataset={few}"], "few.npz has 99"),
        "unknown column": (
            [f"task.dataset={odd}"],
            "odd.npz: unknown column 'next_observation'; did you mean 'next_observations'",
        ),
        "unknown online column": ([data, f"online_dataset={odd}"], "odd.npz: unknown"),
        "cut file": ([f"task.dataset={folder / 'cut.npz'}"], "cut.npz cannot be read"),
        "no such file": ([f"task.dataset={folder / 'nothing.npz'}"], "no file"),
        "taken": ([data, f"output={folder / 'taken'}"], "taken' is not empty"),
        "in the making": ([data, f"output={folder / 'wide'}"], f"continue with --resume {folder / 'wide'}"),
        "nothing to train": ([data, "generator=none"], "NoGenerator has nothing to train"),
        "no interval": ([data, "checkpoint_interval=0"], "'checkpoint_interval': 0"),
        "no folder": ([data, f"generator.pretrained={folder / 'taken'}"], "it has no sha256.json"),
        "nothing to resume": (["--resume", str(folder / "inf")], "no interrupted training of a generator"),
        "nothing to resume here": (["--resume"], "--resume auto: no interrupted training under generators/"),
    }  # fmt: skip


@pytest.mark.parametrize("mistake", [
    "infinite", "infinite column", "few rows", "few online rows", "unknown column", "unknown online column", "cut file",
    "no such file", "taken", "in the making", "nothing to train", "no interval", "no folder", "nothing to resume",
    "nothing to resume here",
])  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, pendulum_table, mistake, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, expected = mistakes(tmp_path, pendulum_table)[mistake]
    before = sorted(tmp_path.rglob("*"))
    own = (
        []
        if "--resume" in arguments
        else [name for name in TINY if name.partition("=")[0].partition(".")[0] != "generator"]
    )
    monkeypatch.setattr(sys, "argv", ["train_generator.py", *own, *arguments])
    with pytest.raises(SystemExit) as leaving:
        main(train_generator.train_generator)
    line = capsys.readouterr().err
    assert leaving.value.code == 2 and expected in line and line.count("\n") == 1, line
    assert sorted(tmp_path.rglob("*")) == before


def test_columns_of_d4rl_files_that_no_transition_needs_are_no_mistake(tmp_path):
    data = table(tmp_path / "d4rl.npz", **{"infos/qpos": np.zeros((400, 2)), "metadata/algorithm": np.zeros(1)})
    assert train(f"task.dataset={data}", f"output={tmp_path / 'g'}", "generator.updates=2") == 0


def test_a_training_that_diverges_ends_with_a_line_and_can_be_continued(tmp_path, pendulum_table, monkeypatch):
    monkeypatch.setattr(CFDG, "update", lambda *_: {"loss": torch.tensor(torch.nan)})
    with pytest.raises(Fault, match="the last 30 updates had a loss or gradient that is not finite"):
        train(f"task.dataset={pendulum_table}", f"output={tmp_path / 'g'}")
    monkeypatch.undo()
    assert GeneratorTraining.resume(str(tmp_path / "g")).execute() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_other_data_is_not_continued_on(tmp_path):
    data = table(tmp_path / "data.npz")
    assert train(f"task.dataset={data}", f"output={tmp_path / 'g'}", interrupted=after(2)) == 130
    table(tmp_path / "data.npz", 300)
    with pytest.raises(InputError, match="was made with other data than data has now"):
        GeneratorTraining.resume(str(tmp_path / "g"))


@pytest.mark.slow
def test_two_processes_train_the_same_generator(tmp_path, pendulum_table):
    weights = []
    for processes in (1, 2):
        flags = ["--multi_gpu", "--num_processes", "2"] if processes == 2 else ["--cpu", "--num_processes", "1"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(SCRIPTS / "train_generator.py")]
        own = [f"task.dataset={pendulum_table}", f"output={tmp_path / str(processes)}", "generator.updates=5"]
        result = subprocess.run([*command, *TINY, *own], capture_output=True, text=True)
        assert result.returncode == 0 and f"{processes} on cpu" in result.stdout, result.stderr[-3000:]
        network = load_generator(tmp_path / str(processes)).model.network
        weights.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < 1e-4
