"""Code named in files: D5, F18."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import SPEC, build

from o2o_diffusion import trust as module
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators import pretrained
from o2o_diffusion.generators.pretrained import MANIFEST, load_generator
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.storage import write_manifest
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop

ROOT = Path(__file__).parent.parent.parent
PLANTED = """import pathlib
from o2o_diffusion.generators.none import NoGenerator
pathlib.Path('ran').touch()
class Planted(NoGenerator): ...
"""


@pytest.fixture(autouse=True)
def planted(tmp_path, monkeypatch):
    """A module in the working directory that leaves a trace when it is imported."""
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "mine.yaml").write_text("target: planted.Planted\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(module, "_trusted", {"o2o_diffusion"})
    monkeypatch.delitem(sys.modules, "planted", raising=False)


def finetune(*overrides: str, recorded: tuple[str, ...] = ()):
    return compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides, recorded=recorded)


def refused():
    return pytest.raises(InputError, match=r"'planted.Planted' is code outside .* add modules=\[planted\]$")


def test_d5_a_target_in_a_file_is_refused_before_it_is_imported():
    with refused():
        finetune("generator=mine.yaml")
    with refused():
        finetune(recorded=("generator.target=planted.Planted",))
    with pytest.raises(InputError, match=r"'os.system' is code outside"):
        finetune(recorded=("learner.target=os.system",))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["generator=mine.yaml", "modules=[planted]"],
        ["modules=planted", "generator=mine.yaml"],
        ["generator.target=planted.Planted"],
    ],
)
def test_d5_the_users_own_words_make_a_module_trusted(words):
    settings = finetune(*words)
    assert settings.components["generator"].target.__name__ == "Planted" and Path("ran").exists()
    assert "modules" not in settings.plain


def test_d5_an_installed_entry_point_is_trusted(monkeypatch):
    monkeypatch.setattr(module, "_installed", lambda: frozenset({"planted"}))
    assert finetune("generator=mine.yaml").components["generator"].target.__name__ == "Planted"


@pytest.mark.parametrize("word", ["modules=", "modules=[a b]", "modules=[../x]"])
def test_d5_modules_are_names(word):
    with pytest.raises(InputError, match="expected names of modules, such as"):
        finetune(word)


def test_d5_f18_a_saved_generator_can_not_name_code(tmp_path):
    folder = tmp_path / "generator"
    build("generator", "synther").save_pretrained(folder)
    for target in ("planted.Planted", "os.system", "subprocess.run", "torch.hub.load"):
        settings = json.loads((folder / pretrained.SETTINGS).read_text())
        (folder / pretrained.SETTINGS).write_text(json.dumps(settings | {"target": target}))
        (folder / MANIFEST).unlink()
        write_manifest(folder, MANIFEST)
        with pytest.raises(InputError, match=f"'{target}' is code outside of o2o_diffusion"):
            load_generator(folder, SPEC)
    assert not Path("ran").exists()


@pytest.mark.slow
def test_d5_f18_a_downloaded_run_can_not_name_code_on_resume(tmp_path, tiny_run):
    """The whole command, in the directory with the planted module."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = [sys.executable, str(ROOT / "scripts" / "finetune.py")]
    own = [*tiny_run, "generator=mine.yaml", "learner=iql", "pretrain_updates=1", "online_steps=0", "output=run"]
    options = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    assert subprocess.run([*script, *own, "modules=planted"], **options).returncode == 0
    Path("ran").unlink()
    result = subprocess.run([*script, "--resume", "run"], **options)
    assert result.returncode == 2 and "add modules=[planted]" in result.stderr and not Path("ran").exists()
    result = subprocess.run([*script, "--resume", "run", "modules=planted"], **options)
    assert result.returncode == 0 and Path("ran").exists(), result.stderr
