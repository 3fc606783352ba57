import pytest
from fakes import FakeRun, FakeStart

from o2o_diffusion.studies.results import results_of
from o2o_diffusion.studies.rows import read_rows
from o2o_diffusion.studies.runner import Runner
from o2o_diffusion.studies.schedule import run_study, stacked
from o2o_diffusion.studies.screening import shown_oracles


def minute(cell, data):
    """Each cell is expected to take a minute."""
    return 60.0


def run(study, places, start, **options):
    return run_study(study, places, 2, start, timed=minute, **options)


def cells_of(places):
    """(task, variant, seed) of all rows, in their order."""
    return [(*row["cell"].values(), row["seed"]) for row in read_rows(places.rows)]


def test_finished_cells_are_not_run_again_though_their_folders_are_gone(make_study, places, capsys):
    study, start = make_study(), FakeStart()
    assert run(study, places, start, seeds=1) == []
    assert len(start.started) == len(read_rows(places.rows)) == 6
    assert run(study, places, start) == []
    assert [seed for *_, seed in cells_of(places)] == [0] * 6 + [1] * 6
    shown = capsys.readouterr().out
    assert "toy: 6 of 6 cells to run, 0.1 core-hours" in shown  # a minute each
    assert "toy: 6 of 12 cells to run, 0.06 core-hours" in shown  # 36 seconds each, as measured


def test_changed_settings_are_run_again(make_study, places):
    run(make_study(), places, FakeStart(), seeds=1)
    run(make_study(**{"guidance=0": "guidance=1"}), places, start := FakeStart(), seeds=1)
    assert ["generator.guidance=1" in arguments for arguments in start.started] == [True, True]


def test_a_failed_cell_is_returned_and_the_others_go_on(make_study, places):
    start = FakeStart(lambda arguments: None if "generator.guidance=0" in arguments else 1.0)
    failed = run(make_study(), places, start, seeds=1)
    assert [cell.name for cell in failed] == ["short_unguided_0", "long_unguided_0"]
    assert len(read_rows(places.rows)) == 4


def test_a_group_without_a_gain_of_the_oracle_is_dropped(make_study, places, capsys):
    def score(arguments):  # the oracle (unguided) gains 5 in the short task, 1 in the long one
        gain = 5 if "online_steps=2000" in arguments else 1
        return 10.0 + gain * ("generator.guidance=0" in arguments)

    study = make_study("screen: {oracles: [unguided], gain: 3, seeds: 1}")
    run(study, places, FakeStart(score))
    assert cells_of(places)[6:] == [("short", "none", 1), ("short", "cfdg", 1), ("short", "unguided", 1)]
    shown = capsys.readouterr().out
    assert "Not run from seed 1 on, because the best oracle gains less than 3: none in long (+1.0)" in shown
    run(study, places, start := FakeStart(score))
    assert start.started == []
    shown = shown_oracles(study, results_of(study, read_rows(places.rows)))
    assert shown.startswith(
        "Gain of the best oracle in area: short: unguided +5.0; long: unguided +1.0, which says noth"
    )


def test_a_variant_that_gains_nothing_on_the_first_task_is_dropped_everywhere(make_study, places):
    study = make_study("screen: {gain: 3, seeds: 1, groups: 1}")
    run(study, places, FakeStart(lambda arguments: 1.0 + 4.0 * ("generator.guidance=0" in arguments)))
    assert cells_of(places)[:3] == [("short", "none", 0), ("short", "cfdg", 0), ("short", "unguided", 0)]
    rest = cells_of(places)[3:]
    assert ("long", "none", 0) in rest and ("long", "unguided", 1) in rest
    assert not [cell for cell in rest if cell[1] == "cfdg"]


def test_a_shared_pretraining_runs_first_and_its_failure_stops_only_what_needs_it(make_study, places):
    study = make_study("share_pretraining: true", **{"pretrain_updates=0": "pretrain_updates=50"})
    run(study, places, start := FakeStart(), seeds=1)
    assert [script for script, *_ in start.started] == ["pretrain.py"] + ["finetune.py"] * 6
    folder = start.started[0][-1].partition("=")[2]
    assert all(f"pretrained={folder}" in arguments for arguments in start.started[1:])
    fails = FakeStart(lambda arguments: None if "online_steps=0" in arguments else 1.0)
    assert len(run(study, places, fails)) == 1 + 6 and len(fails.started) == 1


def test_seeds_of_a_cell_run_in_one_process(make_study, places):
    study = make_study(
        "share_pretraining: true", **{"pretrain_updates=0": "pretrain_updates=50", "seeds: 2": "seeds: 5"}
    )
    run(study, places, FakeStart(), seeds=1)
    run(study, places, start := FakeStart(), stack=3)
    given = [dict(setting.split("=", 1) for setting in arguments[1:]) for arguments in start.started]
    blocks = [
        (arguments[0], own["seed"], own.get("num_seeds")) for arguments, own in zip(start.started, given, strict=True)
    ]
    assert blocks == [
        *[("pretrain.py", "1", "3"), *[("finetune.py", "1", "3")] * 6],
        *[("pretrain.py", "4", None), *[("finetune.py", "4", None)] * 6],
    ]
    assert sorted(seed for *_, seed in cells_of(places)) == [seed for seed in range(5) for _ in range(6)]


def test_seeds_with_a_gap_run_in_processes_of_their_own(make_study):
    first, third = (next(cell for cell in make_study().cells(4) if cell.seed == seed) for seed in (0, 2))
    assert stacked([first, third], 4) == [first, third]


def test_a_stopped_cell_is_continued_and_a_run_without_a_checkpoint_started_anew(make_study, places):
    begun, fresh = list(make_study().cells(1))[:2]
    (places.folder(begun) / "checkpoints" / "step_10").mkdir(parents=True)
    (places.folder(fresh) / "rest").mkdir(parents=True)
    Runner(places, 1, start := FakeStart()).run([begun, fresh])
    assert start.started[0] == ("finetune.py", f"--resume={places.folder(begun)}")
    assert start.started[1][-1] == f"output={places.folder(fresh)}"
    assert not (places.folder(fresh) / "rest").exists()


def test_an_interruption_lets_the_running_cells_save(make_study, places, monkeypatch):
    processes = []

    def start(script, arguments, log):
        processes.append(FakeRun(None))
        return processes[-1]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("o2o_diffusion.studies.runner.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Runner(places, 2, start).run(make_study().cells(1))
    assert [process.code for process in processes] == [130, 130]
