"""Settings: D6, D17, F17, F18."""

import pytest
from faults.words import command_lines

from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop

SECRET_SETTINGS = ("seed", "learner", "learner.tau", "task.reward", "learner.hidden", "logger.project")


def finetune(*overrides: str):
    return compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides)


def test_d17_f17_random_command_lines_are_valid_or_one_line():
    results = {"valid": 0, "refused": 0}
    for words in command_lines(100, seed=0):
        try:
            finetune(*words)
            results["valid"] += 1
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            results["refused"] += 1
    assert results["refused"] > 70


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed={a"], "'seed={a' can't be read: while parsing a flow mapping"),
        (["seed=${nope}"], "Interpolation key 'nope' not found"),
        (["learner.hidden.0=1"], "settings: Cannot merge incompatible container types"),
        (["learner=" + "x" * 500], "File name too long"),
        (["seed=!!python/name:os.system"], "could not determine a constructor for the tag"),
    ],
)
def test_d17_errors_of_yaml_and_interpolations_are_one_line(words, line):
    with pytest.raises(InputError) as error:
        finetune(*words)
    assert line in str(error.value)


def test_d17_a_file_that_is_no_yaml_is_one_line(tmp_path):
    for content in (b"a: [", b"\x00\x01", b"\xff\xfe", b"- 1", b"", b"a: *b", b"${x", b"!!python/object:os.system {}"):
        (tmp_path / "mine.yaml").write_bytes(content)
        with pytest.raises(InputError) as error:
            finetune(f"learner={tmp_path / 'mine.yaml'}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", SECRET_SETTINGS)
def test_d6_f18_secrets_of_the_environment_are_not_echoed(setting, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    words = [f"{setting}=${{oc.env:MY_TOKEN}}"]
    (tmp_path / "mine.yaml").write_text(f"target: o2o_diffusion.learners.iql.IQL\n{'tau: ${oc.env:MY_TOKEN}'}\n")
    for overrides in (words, [f"learner={tmp_path / 'mine.yaml'}"], [*words, "nothing=1"]):
        try:
            settings = finetune(*overrides)
        except InputError as error:
            assert "hunter2" not in str(error)
        else:
            assert "hunter2" not in settings.to_yaml() and setting == "logger.project"
