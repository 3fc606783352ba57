import json
import math
from typing import Any

import pytest
import torch

from o2o_diffusion.errors import InputError
from o2o_diffusion.quality import comparison, residuals
from o2o_diffusion.quality.comparison import check_enough, compare, evaluate
from o2o_diffusion.quality.measures import policy, transport, validity
from o2o_diffusion.quality.page import column_names, save_page
from o2o_diffusion.quality.real import RealData, draw
from o2o_diffusion.quality.remarks import remarks
from o2o_diffusion.quality.table import MEANINGS, show_report, shown
from o2o_diffusion.types import Transitions, TransitionSpec


def rows(size: int, seed: int, center: float = 0.0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    observations = center + torch.randn(size, 2, generator=generator)
    actions = 2 * torch.rand(size, 1, generator=generator) - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return Transitions.create(observations, actions, observations.sum(1), observations + 0.1 * actions, ended)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Perfect offline rows, and online rows that are offline ones."""
    real = {"offline": RealData(rows(400, 0), rows(800, 1)), "online": RealData(rows(400, 2, 3.0), rows(800, 3, 3.0))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residuals, "UPDATES", 100)
        return evaluate({"offline": rows(400, 4), "online": rows(400, 5)}, real, rows=400)


@pytest.mark.slow
def test_each_label_is_compared_in_its_own_world(report, monkeypatch):
    worlds: dict[str, Any] = {}

    def remember(*args: Any, is_online: bool, simulator: Any, **options: Any) -> dict:
        label = "online" if is_online else "offline"
        worlds[label] = simulator
        return report["labels"][label]

    monkeypatch.setattr(comparison, "compare", remember)
    batches, online_world = {label: rows(200, 0) for label in ("offline", "online")}, Any
    real = {label: RealData(batch, batch) for label, batch in batches.items()}
    comparison.evaluate(batches, real, simulators={"online": online_world})  # pyright: ignore[reportArgumentType]
    assert worlds == {"offline": None, "online": online_world}


def test_perfect_rows_are_at_the_floor_and_wrong_ones_at_the_ceiling(report):
    good, wrong = report["labels"]["offline"], report["labels"]["online"]
    for name in ("auc", "marginal", "correlation", "sliced_wasserstein_1", "js_transitions", "coverage"):
        assert abs(good[name]["generated"] - good[name]["floor"]) < 0.1, name
        assert abs(wrong[name]["generated"] - wrong[name]["ceiling"]) < 0.1, name
    assert good["online_probability"]["generated"] < 0.1 and wrong["online_probability"]["generated"] < 0.1
    assert good["novelty"]["floor"] == 1 and good["novelty"]["generated"] == pytest.approx(1, abs=0.2)
    assert good["auc_other"]["generated"] > 0.9 and wrong["auc_other"]["generated"] < 0.65
    assert wrong["js_observations"]["generated"] == pytest.approx(math.log(2), abs=0.15)
    assert good["rows"] == {"generated": 400, "floor": 400, "copier": 400, "ceiling": 400}
    assert good["novelty"]["copier"] < 0.5 and good["outcomes"]["copier"] > 2 > good["outcomes"]["generated"]
    assert report["verdict"].startswith("refused\n- ") and "online" in report["verdict"].splitlines()[1]


def test_the_report_is_written_drawn_and_shown(report, tmp_path, capsys):
    json.dumps(report)
    real = {"offline": RealData(rows(400, 0), rows(800, 1)), "online": RealData(rows(400, 2, 3.0), rows(800, 3, 3.0))}
    save_page(report, {"offline": rows(400, 4), "online": rows(400, 5)}, real, "title", tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    show_report(report | {"notes": ["something to know"]})
    printed = capsys.readouterr().out
    measured = {name for numbers in report["labels"].values() for name in numbers} & set(MEANINGS)
    assert all(MEANINGS[name][0] in printed for name in measured) and "something to know" in printed
    assert report["verdict"] in printed
    assert set(report["labels"]["offline"]) <= {*MEANINGS, "rows", "marginals", "dynamics"}
    assert shown(None) == "" and shown(0.12345) == "0.123" and shown(4e-5) == "4e-05"


def test_rows_that_are_not_finite_are_counted_and_left_out():
    broken = rows(400, 4)
    broken.observations[:100] = torch.nan
    real = RealData(rows(400, 0), rows(400, 1))
    numbers = compare(broken, real, measures=[validity])
    assert numbers["dropped"]["generated"] == pytest.approx(0.25)
    assert compare(rows(300, 4), real, asked=400, measures=[validity])["dropped"]["generated"] == 0.25
    assert numbers["rows"]["generated"] == 300


def test_validity_counts_what_cannot_be():
    outside = rows(400, 4)
    outside.actions[:40] = 1.5
    outside.observations[40:120] = 100.0
    found = compare(outside, RealData(rows(400, 0), rows(400, 1)), measures=[validity])
    assert found["outside_box"] == {"generated": pytest.approx(0.1), "floor": 0.0}
    assert found["outside_range"]["generated"] >= 0.3 and found["outside_range"]["floor"] < 0.1
    assert found["terminations"]["generated"] == pytest.approx(0.2, abs=0.06)


def test_policy_alignment_is_measured_where_there_is_a_policy():
    class Zero:
        def act(self, observations, *, deterministic=False, rng=None):
            return torch.zeros(len(observations), 1)

        def log_prob(self, observations, actions):
            raise TypeError("deterministic")

    agent: Any = Zero()
    generated, real = rows(400, 4), RealData(rows(400, 0), rows(400, 1))
    found = compare(generated, real, agent=agent, measures=[policy])
    assert found["action_error"]["generated"] == pytest.approx(float(generated.actions.square().mean()))
    assert "log_prob" not in found and "action_error" not in compare(generated, real, measures=[policy])


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="50 held-out rows are too few"):
        check_enough(rows(400, 0), RealData(rows(50, 1), rows(400, 2)))


def test_validity_knows_repeated_rows_and_the_ends_of_the_range():
    real = RealData(rows(400, 0), rows(400, 1))
    batch = rows(400, 2)[torch.arange(400) % 100]
    low, high = real.limits[0, 0], real.limits[1, 0]
    batch = batch.where(
        observations=torch.stack([torch.where(batch.observations[:, 0] > 0, high, low), batch.rewards], 1)
    )
    found = compare(batch, real, measures=[validity])
    assert found["duplicates"] == {"generated": 0.75, "floor": 0.0}
    assert found["at_limits"]["generated"] == pytest.approx(1 / 6, abs=0.01)  # one of [s, a, r, s'], of 6 numbers


def test_sliced_distances_leave_out_terminations():
    real, batch = RealData(rows(400, 0), rows(400, 1)), rows(400, 2)
    ended = batch.where(terminations=torch.ones(400))
    assert (
        compare(batch, real, measures=[transport])["sliced_wasserstein_2"]
        == (compare(ended, real, measures=[transport])["sliced_wasserstein_2"])
    )


def test_remarks_on_copies_and_on_shares_that_differ():
    numbers = {"novelty": {"generated": 0.1, "floor": 1.0}, "dynamics_share": {"generated": 0.5, "floor": 0.9}}
    copied, shares = remarks({"online": numbers})
    assert copied.startswith("online: rows are copies") and "50% of the generated but 90% of the real rows" in shares
    assert (
        remarks({"online": {"novelty": {"generated": 0.9}, "dynamics_share": {"generated": 0.9, "floor": 0.9}}}) == []
    )


def test_drawn_rows_keep_their_order():
    batch = rows(100, 0)
    assert (draw(batch, 30, 0).rows.diff() > 0).all() and len(draw(batch, 1_000, 0)) == 100


def test_columns_have_names():
    assert column_names(TransitionSpec(2, 1)) == ["s0", "s1", "a0", "reward", "s'0", "s'1", "termination"]
