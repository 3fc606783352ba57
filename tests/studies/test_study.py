from itertools import islice

import pytest
from builders import names

from o2o_diffusion.errors import InputError
from o2o_diffusion.studies.keys import key_of
from o2o_diffusion.studies.pretraining import with_pretraining
from o2o_diffusion.studies.study import Study, with_data


@pytest.mark.parametrize("path", names("study"), ids=lambda path: path.stem)
def test_every_study_has_valid_settings_and_different_cells(path):
    cells = list(islice(Study.load(path.stem).cells(1), 8))
    assert len({cell.key for cell in cells}) == len({cell.name for cell in cells}) == len(cells)


def test_seed_0_of_all_cells_comes_before_seed_1(make_study):
    cells = list(make_study().cells())
    assert [cell.seed for cell in cells] == [0] * 6 + [1] * 6
    assert [cell.name for cell in cells[:4]] == ["short_none_0", "short_cfdg_0", "short_unguided_0", "long_none_0"]


def test_lists_in_lists_are_flattened(make_study):
    assert list(make_study().cells(1))[2].settings[2:] == (
        "online_steps=2000",
        "generator=cfdg",
        "generator.share=0.5",
        "generator.guidance=0",
        "seed=0",
    )


def test_cells_to_skip_are_left_out(make_study):
    study = make_study("skip: [{task: short, variant: cfdg}, {variant: unguided}]")
    assert [cell.name for cell in study.cells(1)] == ["short_none_0", "long_none_0", "long_cfdg_0"]


def test_equal_settings_have_equal_keys_and_others_have_others():
    settings = ("task=halfcheetah-scratch", "learner=sac")
    assert key_of((*settings, "logger.progress=false", "output=x")) == key_of(settings)
    assert key_of((*settings, "learner.tau=0.005")) == key_of(settings)  # the default
    assert key_of((*settings, "seed=1")) == key_of(settings)
    others = "learner.tau=0.01", "learner=td3", "online_steps=2000"
    assert len({key_of((*settings, other)) for other in ("seed=0", *others)}) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("baseline: nona", "baseline 'nona' is no value of axis 'variant'; did you mean 'none'"),
        ("seeds: 0", "'seeds': 0, expected at least 1"),
        ("screen: {oracles: [relabel]}", "'relabel' is no value of axis 'variant'"),
        ("skip: [{task: short, variant: edis}]", "skip: 'edis' is no value of axis 'variant'"),
        ("repeats: 3", "unknown setting 'repeats'"),
    ],
)
def test_a_wrong_file_is_an_error_of_one_line(make_study, wrong, message):
    name = wrong.partition(":")[0]
    given = {"baseline": "baseline: none", "seeds": "seeds: 2"}.get(name)
    with pytest.raises(InputError, match=message):
        make_study(**{given: wrong}) if given else make_study(wrong)


def test_a_study_of_datasets_needs_their_folder():
    assert with_data(("task.dataset=<data>/a", "seed=0"), "/d") == ["task.dataset=/d/a", "seed=0"]
    with pytest.raises(InputError, match="needs data="):
        with_data(("task.dataset=<data>/a",), None)


def test_cells_with_equal_learners_data_and_seeds_share_a_pretraining(make_study):
    study = make_study("share_pretraining: true", **{"pretrain_updates=0": "pretrain_updates=50"})
    cells = list(with_pretraining(study.cells()))
    offline = [cell for cell in cells if cell.script == "pretrain.py"]
    assert [cell.seed for cell in offline] == [0, 1]  # for two budgets and three generators
    assert [cell.pretraining for cell in cells if cell.script == "finetune.py"] == [offline[0]] * 6 + [offline[1]] * 6
    assert "online_steps=0" in offline[0].settings and "generator=none" in offline[0].settings
    own = make_study(**{"pretrain_updates=0": "pretrain_updates=50"})
    assert {cell.key for cell in study.cells(1)}.isdisjoint(cell.key for cell in own.cells(1))


def test_cells_without_offline_updates_share_nothing(make_study):
    cells = list(make_study().cells())
    assert list(with_pretraining(cells)) == cells
