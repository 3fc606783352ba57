"""What is at a path after a block that succeeded, failed, or was killed, and what is said of a damaged folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from o2o_diffusion.storage import atomic_file, atomic_folder, damage, read_manifest, sha256, sweep, write_manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path) -> Path:
    """A folder that holds the file `content` with the text "old"."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "content").write_text("old")
    return tmp_path / "target"


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_appears_at_the_end_with_its_parents(tmp_path):
    with atomic_file(tmp_path / "a" / "rows.npz") as temporary:
        temporary.write_text("rows")
        assert temporary.suffix == ".npz" and names(tmp_path / "a") == [temporary.name]
    assert names(tmp_path / "a") == ["rows.npz"] and (tmp_path / "a" / "rows.npz").read_text() == "rows"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_or_none(target, error):
    for name, expected in {"content": "old", "new": None}.items():
        with pytest.raises(error), atomic_file(target / name) as temporary:
            temporary.write_text("half")
            raise error
        assert names(target) == ["content"]
        assert expected is None or (target / name).read_text() == expected


def test_a_file_replaces_what_a_link_points_to_and_no_folder(target, tmp_path):
    (tmp_path / "link").symlink_to(target / "content")
    with atomic_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (target / "content").read_text() == "new"
    with pytest.raises(FileExistsError), atomic_file(target):
        pytest.fail("the block is not entered")


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_or_none(target, tmp_path, replace, error):
    with pytest.raises(error), atomic_folder(target if replace else tmp_path / "new", replace=replace) as temporary:
        (temporary / "content").write_text("half")
        raise error
    assert names(tmp_path) == ["target"] and (target / "content").read_text() == "old"


def test_a_folder_is_replaced_only_on_request(target, tmp_path):
    with pytest.raises(FileExistsError), atomic_folder(target):
        pytest.fail("the block is not entered")
    with atomic_folder(target, replace=True) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "content").write_text("new")
    assert names(tmp_path) == ["target"] and names(target) == ["inner"]


def test_the_old_folder_is_restored_when_the_rename_fails(target, tmp_path, monkeypatch):
    rename = Path.rename

    def failing(self, to):
        if Path(to) == target and not self.name.endswith(".old"):
            raise OSError("no rename")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no rename"), atomic_folder(target, replace=True) as temporary:
        (temporary / "content").write_text("new")
    assert names(tmp_path) == ["target"] and (target / "content").read_text() == "old"


def test_leftovers_of_dead_processes_are_swept_and_no_others(target, tmp_path, dead):
    kept = [f".target.tmp-{os.getppid()}-00000000", f".other.tmp-{dead}-00000000", ".target.tmp-mine"]
    for name in (*kept, f".target.tmp-{dead}-00000000", f".target.tmp-{dead}-00000000.old"):
        (tmp_path / name).mkdir()
    (tmp_path / f".target.tmp-{dead}-11111111.npz").touch()
    with atomic_folder(target, replace=True):
        pass
    assert names(tmp_path) == sorted([*kept, "target"])
    sweep(tmp_path, "oth*")
    assert names(tmp_path) == sorted([kept[0], kept[2], "target"])


def test_a_folder_that_was_moved_out_of_the_way_is_moved_back(target, tmp_path, dead):
    target.rename(tmp_path / f".target.tmp-{dead}-00000000.old")
    (tmp_path / f".target.tmp-{dead}-00000000").mkdir()
    sweep(tmp_path, "target")
    assert names(tmp_path) == ["target"] and (target / "content").read_text() == "old"


def test_a_manifest_lists_every_file(target):
    write_manifest(target, "sums.json")
    assert read_manifest(target, "sums.json") == {"content": sha256(target / "content")}
    write_manifest(target, "sums.json", schema=1)
    manifest = read_manifest(target, "sums.json")
    assert len(manifest.pop("digest")) == 64
    files = {"files": {"content": sha256(target / "content")}, "sizes": {"content": 3}}
    assert manifest == {"schema": 1, **files}
    assert damage(target, "sums.json", ["content"]) is None


@pytest.mark.parametrize("content", [{}, {"schema": 1}])
@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("content", None, "content is missing"),
        ("content", "OLD", "content was altered since it was saved (sha256 differs)"),
        ("sums.json", None, "sums.json is missing"),
        ("sums.json", "{", "sums.json was altered and cannot be read ("),
        ("sums.json", "[1]", "sums.json was altered and cannot be read ("),
        ("sums.json", '{"files": 1}', "sums.json was altered and cannot be read ("),
        ("sums.json", "{}", "sums.json does not list content"),
    ],
)
def test_damage_is_said_in_words(target, content, file, text, words):
    write_manifest(target, "sums.json", **content)
    (target / file).unlink() if text is None else (target / file).write_text(text)
    assert str(damage(target, "sums.json", ["content"])).startswith(words)


def test_a_manifest_protects_its_own_content_and_file_sizes(target):
    write_manifest(target, "sums.json", step=1)
    assert damage(target, "sums.json", step=1) is None
    assert damage(target, "sums.json", step=2) == "sums.json has step 1, expected 2"
    (target / "content").write_text("longer")
    assert damage(target, "sums.json") == "content has 6 bytes, expected 3"
    text = (target / "sums.json").read_text()
    (target / "sums.json").write_text(text.replace('"step": 1', '"step": 2'))
    assert damage(target, "sums.json", step=2) == "sums.json was altered and cannot be read (its digest differs)"
    (target / "sums.json").write_text(text.replace("digest", "digesu"))
    assert damage(target, "sums.json", step=1) == "sums.json has no digest"


def test_a_manifest_speaks_of_its_own_folder_only(target):
    (target / "sums.json").write_text(f'{{"../target/content": "{sha256(target / "content")}"}}')
    assert damage(target, "sums.json") == "../target/content is missing"
