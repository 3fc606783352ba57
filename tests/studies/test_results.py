from typing import Any

from o2o_diffusion.studies.page import save_page, table
from o2o_diffusion.studies.results import Results
from o2o_diffusion.training.report import NUMBERS


def row(variant: str, seed: int, score: float, *, task: str = "a", processor: str = "x", **changes: Any) -> dict:
    """A run whose score is `score` at each of its two evaluations."""
    curve = [{"env_steps": steps, "score": score} for steps in (0, 500)]
    metrics = dict.fromkeys(("area_under_curve", "score_at_switch", "worst_score", "final_score"), score)
    about = {"cell": {"task": task, "variant": variant}, "seed": seed, "processor": processor, "numbers": NUMBERS}
    return {
        **about,
        **metrics,
        "curve": curve,
        "score": "return",
        "seconds": {"total": 36.0},
        "refreshes": 3,
        "refused_refreshes": 1,
        **changes,
    }


def results(*rows: dict) -> Results:
    return Results(rows, "variant", "none")


def test_only_runs_of_one_seed_and_kind_of_processor_are_paired():
    found = results(row("none", 0, 1.0), row("cfdg", 0, 4.0), row("none", 1, 2.0), row("cfdg", 1, 9.0, processor="y"))
    assert found.differences("cfdg", "a", "final_score") == [3.0]
    assert found.scores("cfdg", "a", "final_score") == [4.0, 9.0]


def test_a_run_repeated_on_another_kind_of_processor_counts_once():
    rows = [
        row(name, 0, score, processor=p)
        for p, k in (("x", 0), ("y", 10))
        for name, score in (("none", k), ("cfdg", k + 1))
    ]
    found = results(*rows, row("none", 1, 11.0, processor="y"))
    assert found.scores("none", "a", "final_score") == [10, 11]  # y has more rows
    assert found.differences("cfdg", "a", "final_score") == [1]


def test_rows_of_other_numbers_are_left_out_and_counted():
    found = results(row("none", 0, 1.0), row("none", 1, 1.0, numbers=NUMBERS - 1))
    assert found.num_old == 1 and found.scores("none", "a", "final_score") == [1.0]


def test_a_table_over_tasks_has_only_variants_with_runs_on_all_of_them():
    rows = [
        row(name, seed, 1.0 + seed, task=task) for name in ("none", "cfdg") for seed in (0, 1) for task in ("a", "b")
    ]
    found = results(*rows, row("edis", 0, 5.0))
    assert found.variants == ["none", "cfdg", "edis"] and found.groups == ["a", "b"]
    assert [line.split(" | ")[0] for line in table(found, found.groups).splitlines()[2:]] == ["| none", "| cfdg"]


def test_the_page_shows_numbers_figures_and_time(tmp_path):
    rows = [row(name, seed, score + seed) for name, score in (("none", 1.0), ("cfdg", 4.0)) for seed in range(4)]
    save_page(results(*rows), "toy", "the command", tmp_path / "toy.md")
    text = (tmp_path / "toy.md").read_text()
    assert "Made by `the command`." in text and "8 runs on x; 0.1 core-hours." in text
    assert (
        "| cfdg | 4 | 12, 4 | 5.5" in text and "+3.0 [+3.0, +3.0] | +120% |" in text and "| 0.12 |" in text
    )  # 2 of 2^4 signs
    assert {path.name for path in tmp_path.iterdir()} == {"toy.md", "toy-curves.png", "toy-differences.png"}
