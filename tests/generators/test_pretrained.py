import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from builders import make_replay
from huggingface_hub import ModelCard

from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.cfdg import CFDG
from o2o_diffusion.generators.pretrained import check_manifest, checksum, find_folder, load_generator, read_provenance
from o2o_diffusion.types import TransitionSpec

SPEC = TransitionSpec(3, 1)
TINY = CFDG.Config(updates=4, batch_size=16, width=8, depth=1, embedding_dim=8, sampling=Sampling(num_steps=3))
PROVENANCE = {
    "dataset": "mujoco/hopper/medium-v0",
    "dataset_sha256": "ab" * 32,
    "updates": 4_000,
    "environment": {"id": "Hopper-v5"},
    "quality": {"rows": 500, "verdict": "accepted", "numbers": {"offline_auc": 0.6123}},
}


@pytest.fixture
def generator() -> CFDG:
    """Fitted to 200 offline and 100 online rows of noise, not trained."""
    replay, generator = make_replay(SPEC, offline=200, online=100), CFDG(TINY, SPEC, seed=0)
    generator.model.fit([replay.offline, replay.online], (0.5, 0.5))
    return generator


@pytest.fixture
def folder(generator, tmp_path) -> Path:
    generator.save_pretrained(tmp_path / "saved", PROVENANCE)
    return tmp_path / "saved"


def rewrite(path: Path, content: dict) -> None:
    """Change a JSON file of a folder and its manifest, as a save would have."""
    path.write_text(json.dumps(content))
    manifest = path.with_name("sha256.json")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {path.name: digest}))


def test_a_folder_explains_itself(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "o2o_diffusion" and card.data.license is None
    shown = (
        "CFDG",
        "mujoco/hopper/medium-v0",
        "ab" * 32,
        "Hopper-v5",
        "| offline rows | 200 |",
        "| online rows | 100 |",
    )
    for text in (*shown, "| updates | 4,000 |", "0.612", "| `observations` | 3 |", "`label_dropout`", "Intended use"):
        assert text in card.content, text
    assert "README.md" in json.loads((folder / "sha256.json").read_text())


def test_provenance_and_rows_survive_in_whatever_class_saved_them(folder, draw):
    loaded = load_generator(folder, SPEC, seed=3)
    assert type(loaded) is CFDG and read_provenance(folder) == PROVENANCE
    rows = [SPEC.flatten(draw(made, 5)) for made in (loaded, CFDG.from_pretrained(folder, seed=3))]
    assert torch.equal(*rows)


def test_sampling_settings_come_back(folder, generator):
    generator.config = replace(TINY, sampling=Sampling(solver="heun", num_steps=7, churn=3.0, restarts=2))
    generator.save_pretrained(folder)
    loaded = load_generator(folder)
    assert loaded.config.sampling == generator.config.sampling
    assert json.loads((folder / "generator.json").read_text())["sampling"]["num_steps"] == 7


@pytest.mark.parametrize(
    ("flat", "sampling"),
    [
        ({"solver": "dpm", "num_steps": 5}, Sampling(num_steps=5, restarts=0)),  # written before there were restarts
        (
            {"solver": "heun", "num_steps": 9, "churn": 40.0, "restarts": 3, "restart_sigma": 0.5, "start_sigma": None},
            Sampling(solver="heun", num_steps=9, churn=40.0, restarts=3, restart_sigma=0.5),
        ),
    ],
)
def test_a_folder_of_version_0_1_still_loads(folder, flat, sampling, draw):
    rows = [SPEC.flatten(draw(replaced(folder, sampling), 5))]
    nested = json.loads((folder / "generator.json").read_text())
    del nested["sampling"], nested["gate"]
    rewrite(folder / "generator.json", nested | flat | {"max_auc": 0.95})
    rewrite(folder / "facts.json", {"dataset": "an/old-one-v0"})
    (folder / "provenance.json").unlink()
    manifest = json.loads((folder / "sha256.json").read_text())
    del manifest["provenance.json"]
    (folder / "sha256.json").write_text(json.dumps(manifest))
    loaded = load_generator(folder, seed=3)
    assert loaded.config.sampling == sampling and loaded.config.width == TINY.width
    assert read_provenance(folder) == {"dataset": "an/old-one-v0"}
    rows.append(SPEC.flatten(draw(loaded, 5)))
    assert torch.equal(*rows)
    loaded.save_pretrained(folder)  # in today's form
    assert load_generator(folder).config.sampling == sampling and not (folder / "facts.json").exists()


def replaced(folder: Path, sampling: Sampling) -> CFDG:
    """The saved generator with other settings of sampling."""
    generator = load_generator(folder, seed=3)
    generator.config = replace(generator.config, sampling=sampling)
    return generator


def test_saving_again_replaces_a_generator_and_nothing_else(folder, generator, tmp_path):
    first = checksum(folder)
    generator.save_pretrained(folder)
    assert checksum(folder) != first and read_provenance(folder) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty and not a saved generator"):
        generator.save_pretrained(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_save_that_fails_leaves_nothing_and_keeps_what_was(folder, generator, tmp_path, monkeypatch):
    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    generator.parts, generator.energies = ("energies",), torch.nn.Linear(1, 1)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(InputError, match="No space left"):
            generator.save_pretrained(target)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    check_manifest(folder)


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("diffusion_pytorch_model.safetensors", b"", "diffusion_pytorch_model.safetensors was altered"),
        ("config.json", b"{}", "config.json was altered"),
        ("README.md", b"# Mine", "README.md was altered"),
        ("sha256.json", b"{", "sha256.json was altered and cannot be read"),
        ("sha256.json", b"{}", "sha256.json does not list config.json"),
        ("sha256.json", None, "is not a saved generator: it has no sha256.json"),
        ("generator.json", None, "generator.json is missing"),
    ],
)
def test_damage_is_named(folder, file, content, message):
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_generator(folder)


def test_a_manifest_names_files_of_its_folder_only(folder):
    digests = json.loads((folder / "sha256.json").read_text())
    (folder / "sha256.json").write_text(json.dumps(digests | {"../outside": "0"}))
    (folder.parent / "outside").touch()
    with pytest.raises(InputError, match=r"\.\./outside is missing"):
        load_generator(folder)


def test_other_columns_are_refused(folder):
    with pytest.raises(InputError, match=r"observations 3, actions 1.*; the task has observations 4, actions 1"):
        load_generator(folder, TransitionSpec(4, 1))


def test_a_folder_wins_over_an_id(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full_disk)
    name = f"{folder.parent.name}/saved"  # could be an id on the hub
    assert find_folder(name) == Path(name) and load_generator(name).spec == SPEC


def test_an_id_is_downloaded(folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.update(options, name=name) or str(folder)
    )
    assert load_generator("someone/hopper-cfdg").spec == SPEC and asked["name"] == "someone/hopper-cfdg"
    assert CFDG.from_pretrained("someone/hopper-cfdg").spec == SPEC
    assert set(asked["allow_patterns"]) == {"*.json", "*.safetensors", "README.md"}


def test_what_cannot_be_had_is_one_line(folder, monkeypatch):
    for name in ("nothing-here", "/no/such/folder", "a/b/c", str(folder / "config.json")):
        with pytest.raises(InputError, match=r"is not a saved generator: neither a folder nor an id on the hub"):
            find_folder(name)
    with pytest.raises(InputError, match=r"did you mean 'saved'"):
        find_folder(folder.with_name("savd"))
    with pytest.raises(InputError, match=r"no folder someone/nothing, and no generator someone/nothing .* hub \(.+\)$"):
        find_folder("someone/nothing")  # the tests run offline


def test_a_saved_generator_names_no_code_but_the_packages(folder, monkeypatch):
    path = folder / "generator.json"
    rewrite(path, json.loads(path.read_text()) | {"target": "os.path.join"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(InputError, match=r"os\.path\.join' is code outside of o2o_diffusion"):
        load_generator("someone/hopper-cfdg")
    with pytest.raises(InputError, match=r"os\.path\.join' is code outside of o2o_diffusion"):
        load_generator(folder)


class Hub:
    """Takes what is pushed; `calls` is what was asked of it."""

    def __init__(self, token=None):
        self.calls: dict = {"token": token}
        Hub.last = self

    def create_repo(self, repo_id, **options):
        self.calls |= {"repo_id": repo_id, **options}
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        check_manifest(Path(folder_path))
        self.calls |= {"files": sorted(path.name for path in Path(folder_path).iterdir())}
        self.calls |= {"card": ModelCard.load(Path(folder_path) / "README.md")}


def test_pushing_uploads_a_whole_folder_with_its_card(folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    options = {"license": "cc-by-4.0", "private": True, "token": "t"}
    address = CFDG.from_pretrained(folder).push_to_hub("me/hopper", read_provenance(folder), **options)
    calls = Hub.last.calls
    assert address == "https://huggingface.co/me/hopper"
    assert (calls["repo_id"], calls["private"], calls["exist_ok"], calls["token"]) == ("me/hopper", True, True, "t")
    assert calls["files"] == sorted(path.name for path in folder.iterdir())
    assert calls["card"].data.license == "cc-by-4.0" and "mujoco/hopper/medium-v0" in calls["card"].content


def test_a_push_that_fails_is_one_line(generator, monkeypatch):
    with pytest.raises(InputError, match="'hopper' is not an id on the hub"):
        generator.push_to_hub("hopper")
    broken = SimpleNamespace(create_repo=lambda *_, **__: full_disk())
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **_: broken)
    with pytest.raises(InputError, match=r"could not be pushed to me/hopper: .*No space left"):
        generator.push_to_hub("me/hopper")
