import re
from dataclasses import dataclass
from typing import Annotated

import pytest

from o2o_diffusion.command_line import command_line, describe
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import CONFIGS, available, compose
from o2o_diffusion.training.finetune import GROUPS
from o2o_diffusion.training.loop import Finetuning
from o2o_diffusion.types import TransitionSpec

ALL = [(group, name) for group in GROUPS for name in available(group)]


def finetune(*overrides: str):
    return compose(CONFIGS / "finetune.yaml", Finetuning.Config, GROUPS, overrides)


@pytest.mark.parametrize(("group", "name"), ALL)
def test_every_shipped_file_composes_and_every_setting_is_explained(group, name):
    component = finetune(f"{group}={name}").components[group]
    assert all(meaning for _, _, meaning in describe(component.target.Config)), component.target


@pytest.mark.parametrize("name", available("experiment"))
def test_every_experiment_builds_its_components_and_names_its_source(name):
    components = finetune(f"experiment={name}").components
    for group in ("generator", "sampler", "learner"):
        components[group].build(TransitionSpec(3, 2), seed=0, device="cpu")
    source, settings = (CONFIGS / "experiment" / f"{name}.yaml").read_text().split("pretrain_updates", 1)
    assert re.search(r"arXiv \d{4}\.\d{5}|CORL", source)
    assert f"name: {name.partition('-')[2]}\n" in settings


def test_an_experiment_names_components_with_differences_that_go_with_the_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "discount: 0.9\nlearner: {name: iql, expectile: 0.9, hidden: [8]}\nsampler: {name: mixture, ramp: 7}\n"
    )
    settings = finetune(f"experiment={file}", "learner.expectile=0.6")
    learner, sampler = (settings.components[group].config for group in ("learner", "sampler"))
    assert (learner.expectile, learner.hidden, learner.discount, sampler.ramp) == (0.6, (8,), 0.9, 7)
    assert finetune(f"experiment={file}", "learner=famo2o").components["learner"].config.hidden == (256, 256)


def test_overrides_win_over_files_and_files_over_defaults():
    settings = finetune("learner=rlpd", "learner.ensemble_size=3", "seed=5", "discount=0.5")
    config = settings.components["learner"].config
    assert (config.ensemble_size, config.layer_norm, config.discount, settings.run.seed) == (3, True, 0.5, 5)


def test_saved_settings_are_read_again_and_keep_interpolations(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    settings = finetune("seed=5", "learner.hidden=[8]", "logger.project='${oc.env:SECRET}'")
    settings.save(tmp_path / "settings.yaml")
    assert "hidden\n" not in (tmp_path / "settings.yaml").read_text()
    assert "${oc.env:SECRET}" in (tmp_path / "settings.yaml").read_text()
    again = compose(tmp_path / "settings.yaml", Finetuning.Config, GROUPS)
    assert again.components["learner"] == settings.components["learner"] and again.run == settings.run


def test_a_component_from_a_path_or_of_a_third_party(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("target: o2o_diffusion.learners.iql.IQL\nexpectile: 0.8\n")
    assert finetune(f"learner={file}").components["learner"].config.expectile == 0.8


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("learner=famo20", "unknown learner 'famo20'; did you mean 'famo2o'?"),
        ("learner.expectil=0.9", "unknown setting 'learner.expectil'; did you mean 'expectile'?"),
        ("sed=1", "unknown setting 'sed'; did you mean 'seed'?"),
        ("seed=abc", "setting 'seed': Value 'abc' of type 'str' could not be converted to Integer"),
        ("learner.tau=high", "setting 'learner.tau': Value 'high' of type 'str' could not be converted to Float"),
        ("online_steps", "'online_steps' is not of the form setting=value"),
        ("learner.target=nowhere.Learner", "target 'nowhere.Learner' is not a class that can be imported"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(override, line):
    with pytest.raises(InputError) as error:
        finetune(override)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_help_shows_every_setting_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as leaving:
        command_line("What it does.", "finetune.yaml", Finetuning.Config, GROUPS, ["--help"], {"resume": "go on"})
    shown = capsys.readouterr().out
    assert leaving.value.code == 0 and "--resume" in shown
    for name, _, meaning in describe(Finetuning.Config):
        assert f"{name}=" in shown and meaning in shown
    assert "learner.expectile=0.7" in shown


def test_help_shows_an_experiments_values(capsys):
    words = ["--help", "--experiment", "antmaze-iql", "--sampler", "mixture"]
    with pytest.raises(SystemExit):
        command_line("What it does.", "finetune.yaml", Finetuning.Config, GROUPS, words)
    shown = " ".join(capsys.readouterr().out.split())
    for setting in ("pretrain_updates=1000000", "learner.expectile=0.9", "task.reward=minus_one", "sampler = mixture"):
        assert setting in shown


def test_dashes_choose_groups():
    settings, _ = command_line("", "finetune.yaml", Finetuning.Config, GROUPS, ["--learner", "iql", "seed=3"])
    assert settings is not None and settings.components["learner"].target.__name__ == "IQL" and settings.run.seed == 3


def test_nested_settings_are_described_under_dotted_names():
    @dataclass(frozen=True)
    class Inner:
        x: Annotated[int, "an x"] = 1

    @dataclass(frozen=True)
    class Outer:
        inner: Annotated[Inner, "nested"] = Inner()

    assert describe(Outer) == [("inner.x", 1, "an x")]
