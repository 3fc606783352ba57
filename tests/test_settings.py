import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Ge, Interval

from o2o_diffusion.command_line import command_line, describe
from o2o_diffusion.environments.behaviors.factory import CONTROLLERS
from o2o_diffusion.environments.behaviors.policy import packaged_policy
from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import CONFIGS, available, compose
from o2o_diffusion.training.folders import GROUPS, SETTINGS, save_settings
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.train_generator import GeneratorTraining
from o2o_diffusion.types import TransitionSpec

ALL = [(group, name) for group in GROUPS for name in available(group)]
SUITE = sorted(path.stem for path in (CONFIGS / "experiment" / "suite").glob("*.yaml"))


def finetune(*overrides: str):
    return compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides)


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


@pytest.mark.parametrize("name", SUITE)
def test_a_task_of_the_suite_is_small_and_needs_no_download(name):
    settings = finetune(f"experiment=suite/{name}")
    assert settings.run.updates_per_step * settings.run.online_steps <= 50_000
    task = settings.components["task"].config
    if task.dataset is not None and name != "door-human":
        assert task.recording is not None and task.recording.dataset == task.dataset
        behaviors = {stage.behavior for stage in task.recording.stages} - {"random", *CONTROLLERS}
        assert all(packaged_policy(behavior).stat().st_size < 200_000 for behavior in behaviors)


def test_an_experiment_names_components_with_differences_that_go_with_the_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "discount: 0.9\nlearner: {name: iql, expectile: 0.9, hidden: [8]}\nsampler: {name: mixture, ramp: 7}\n"
    )
    settings = finetune(f"experiment={file}", "learner.expectile=0.6")
    learner, sampler = (settings.components[group].config for group in ("learner", "sampler"))
    assert (learner.expectile, learner.hidden, settings.run.discount, sampler.ramp) == (0.6, (8,), 0.9, 7)
    assert finetune(f"experiment={file}", "learner=famo2o").components["learner"].config.hidden == (256, 256)


def test_overrides_win_over_files_and_files_over_defaults():
    settings = finetune("learner=rlpd", "learner.ensemble_size=3", "seed=5", "discount=0.5")
    config = settings.components["learner"].config
    assert (config.ensemble_size, config.layer_norm) == (3, True)
    assert (settings.run.discount, settings.run.seed) == (0.5, 5)


def test_saved_settings_are_read_again_and_keep_interpolations(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    settings = finetune("seed=5", "learner.hidden=[8]", "logger.project='${oc.env:SECRET}'")
    save_settings(settings.to_yaml(), tmp_path)
    assert "hidden\n" not in (tmp_path / SETTINGS).read_text()
    assert "${oc.env:SECRET}" in (tmp_path / SETTINGS).read_text()
    again = compose(tmp_path / SETTINGS, Loop.Config, GROUPS)
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
        ("generator.share=1.5", "setting 'generator.share': 1.5, expected at most 1"),
        ("eval_interval=0", "setting 'eval_interval': 0, expected at least 1"),
        ("learner.expectile=1", "setting 'learner.expectile': 1.0, expected less than 1"),
        ("learner.learning_rate=0", "setting 'learner.learning_rate': 0.0, expected more than 0"),
        ("learner.hidden=[8,0]", "setting 'learner.hidden[1]': 0, expected at least 1"),
        ("task.recording.stages=[{share: -1}]", "setting 'task.recording.stages[0].share': -1.0, expected more than 0"),
        ("discount=2", "setting 'discount': 2.0, expected at most 1"),
        ("generator.sampling.churn=inf", "setting 'generator.sampling.churn': inf, expected a finite number"),
        ("task.reward=rang", "setting 'task.reward': Invalid value 'rang', expected one of ['auto', 'raw', "),
        ("warmup_steps=10000", "run settings: 'warmup_steps' is 10000, expected less than 'online_steps'"),
        (
            "generator.sampling.restart_sigma=0.01",
            "generator settings: 'restart_sigma_min' is 0.03, expected at most",
        ),
        ("generator.sampling.churm=1", "unknown setting 'generator.sampling.churm'; did you mean 'churn'?"),
        ("generator.sampling.restarts=-1", "setting 'generator.sampling.restarts': -1, expected at least 0"),
        ("sampler.offline=1.5", "setting 'sampler.offline': 1.5, expected at most 1"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(override, line):
    with pytest.raises(InputError) as error:
        finetune(override)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_settings_that_contradict_each_other_are_one_line():
    with pytest.raises(InputError, match=r"sampler settings: the shares of the pools sum to 1\.2, expected at most 1$"):
        finetune("sampler=mixture", "sampler.offline=0.7", "sampler.online=0.5")
    with pytest.raises(InputError, match=r"sampler settings: 'gate' is 20, expected less than 'recent', 20$"):
        finetune("sampler=choice", "sampler.gate=20", "sampler.recent=20")


def test_null_and_the_infinite_default_are_in_range():
    settings = finetune("learner=cql", "learner.min_difference=-inf", "learner.gap=null", "sampler.offline=null")
    assert settings.components["learner"].config.min_difference == -math.inf
    with pytest.raises(InputError, match=r"max_difference': nan, expected a finite number"):
        finetune("learner=cql", "learner.max_difference=nan")


def component(folder: Path, group: str, run: str) -> str:
    """group=<a file with the base run's component of `group`, and `run:`>."""
    file, name = folder / f"my_{group}.yaml", {"task": "custom", "generator": "cfdg", "learner": "iql"}[group]
    file.write_text(f"{(CONFIGS / group / f'{name}.yaml').read_text()}\nrun: {run}\n")
    return f"{group}={file}"


def test_what_methods_ask_of_a_run_wins_over_the_base_and_the_learner_wins(tmp_path):
    task = component(tmp_path, "task", "{eval_episodes: 3, log_interval: 7}")
    generator = component(tmp_path, "generator", "{updates_per_step: 5, log_interval: 8, sampler: prioritized}")
    learner = component(tmp_path, "learner", "{updates_per_step: 6, sampler: {name: mixture, ramp: 7}}")
    settings = finetune(task, generator)
    assert (settings.run.eval_episodes, settings.run.log_interval, settings.run.updates_per_step) == (3, 8, 5)
    assert settings.components["sampler"].target.__name__ == "Prioritized"
    settings = finetune(task, generator, learner)
    assert settings.run.updates_per_step == 6 and settings.components["sampler"].config.ramp == 7
    assert settings.origins == {
        "eval_episodes": "task my_task",
        "log_interval": "generator my_generator",
        "updates_per_step": "learner my_learner",
        "sampler": "learner my_learner",
    }


def test_experiment_and_command_line_win_over_what_methods_ask(tmp_path):
    rlpd = finetune("learner=rlpd")
    assert rlpd.asked == "updates_per_step 20, sampler mixture (learner rlpd)" and not finetune().origins
    file = tmp_path / "mine.yaml"
    file.write_text("learner: rlpd\nupdates_per_step: 4\nsampler: {name: mixture, online: 0.5}\n")
    settings = finetune(f"experiment={file}")
    sampler = settings.components["sampler"].config
    assert (settings.run.updates_per_step, sampler.ramp, sampler.online) == (4, 50_000, 0.5) and not settings.origins
    settings = finetune("learner=rlpd", "updates_per_step=5", "sampler.ramp=50")
    assert (settings.run.updates_per_step, settings.components["sampler"].config.ramp) == (5, 50)
    assert settings.origins == {"sampler": "learner rlpd"}
    assert finetune("learner=rlpd", "sampler=mixture").components["sampler"].config.ramp == 50_000
    assert finetune("learner=gcql", "sampler.ramp=50").components["sampler"].config.gate == 1_000


def test_a_saved_run_asks_for_nothing_again(tmp_path):
    settings = finetune("learner=rlpd", "updates_per_step=2", "sampler.ramp=9")
    save_settings(settings.to_yaml(), tmp_path)
    again = compose(tmp_path / SETTINGS, Loop.Config, GROUPS)
    assert (again.run, again.components, again.origins) == (settings.run, settings.components, {})


@pytest.mark.parametrize(
    ("run", "line"),
    [
        ("{updates_per_stp: 1}", "unknown setting 'learner.run.updates_per_stp'; did you mean 'updates_per_step'?"),
        ("{generator: none}", "unknown setting 'learner.run.generator'"),
        ("{updates_per_step: many}", "setting 'learner.run.updates_per_step': Value 'many'"),
        ("{sampler: mixtur}", "unknown sampler 'mixtur'; did you mean 'mixture'?"),
        ("5", "'run' is 5, expected 'setting: value' lines"),
    ],
)
def test_a_mistake_in_run_is_named(tmp_path, run, line):
    with pytest.raises(InputError) as error:
        finetune(component(tmp_path, "learner", run), "updates_per_step=1")
    assert line in str(error.value)
    with pytest.raises(InputError, match="'warmup_steps' is asked for by learner pex"):
        finetune("learner=pex", "online_steps=5000")


def test_a_program_without_a_learner_ignores_run(tmp_path):
    asking = component(tmp_path, "generator", "{seed: 3, updates_per_step: 6, sampler: mixture}")
    settings = compose(None, GeneratorTraining.Config, ("generator",), [asking])
    assert settings.run.seed == 0 and not settings.origins


def test_help_shows_every_setting_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as leaving:
        command_line("What it does.", "finetune.yaml", Loop.Config, GROUPS, ["--help"], {"resume": "go on"})
    shown = capsys.readouterr().out
    assert leaving.value.code == 0 and "--resume" in shown
    for name, _, meaning in describe(Loop.Config):
        assert f"{name}=" in shown and meaning in shown
    assert "learner.expectile=0.7" in shown and "V regresses on, in (0, 1) [> 0, < 1]" in shown


def test_help_shows_what_the_learner_asks_for_and_what_is_set(capsys):
    words = ["--help", "--learner", "rlpd", "warmup_steps=7"]
    with pytest.raises(SystemExit):
        command_line("What it does.", "finetune.yaml", Loop.Config, GROUPS, words)
    shown = capsys.readouterr().out
    assert all(setting in shown for setting in ("updates_per_step=20 ", "sampler.ramp=0 ", "warmup_steps=7 "))


def test_help_shows_an_experiments_values(capsys):
    words = ["--help", "--experiment", "antmaze-iql", "--sampler", "mixture"]
    with pytest.raises(SystemExit):
        command_line("What it does.", "finetune.yaml", Loop.Config, GROUPS, words)
    shown = " ".join(capsys.readouterr().out.split())
    for setting in ("pretrain_updates=1000000", "learner.expectile=0.9", "task.reward=minus_one", "sampler = mixture"):
        assert setting in shown


def test_dashes_choose_groups():
    settings, _ = command_line("", "finetune.yaml", Loop.Config, GROUPS, ["--learner", "iql", "seed=3"])
    assert settings is not None and settings.components["learner"].target.__name__ == "IQL" and settings.run.seed == 3


def test_nested_settings_are_described_under_dotted_names():
    @dataclass(frozen=True)
    class Inner:
        x: Annotated[int, "an x"] = 1
        y: Annotated[float, "a y", Interval(gt=0, le=1)] = 0.5
        z: Annotated[int | None, "a z", Ge(2)] = None

    @dataclass(frozen=True)
    class Outer:
        inner: Annotated[Inner, "nested"] = Inner()

    assert describe(Outer) == [
        ("inner.x", 1, "an x"),
        ("inner.y", 0.5, "a y [> 0, <= 1]"),
        ("inner.z", None, "a z [>= 2]"),
    ]


def test_the_command_line_wins_over_an_experiment(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("discount: 0.9\nseed: 4\nlearner: {name: iql, expectile: 0.9}\n")
    for overrides in (["discount=0.5", f"experiment={file}"], [f"experiment={file}", "discount=0.5"]):
        run = finetune(*overrides).run
        assert (run.discount, run.seed) == (0.5, 4)


def test_a_run_is_continued_with_its_own_settings():
    words = ["--resume", "runs/mine"]
    settings, arguments = command_line("", "finetune.yaml", Loop.Config, GROUPS, words, {"resume": "go on"})
    assert settings is None and arguments.resume == "runs/mine"
    words += ["--learner", "iql", "seed=1"]
    settings, arguments = command_line("", "finetune.yaml", Loop.Config, GROUPS, words, {"resume": "go on"})
    assert settings is None and arguments.overrides == ["learner=iql", "seed=1"]
