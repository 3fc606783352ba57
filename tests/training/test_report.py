"""The numbers of a summary from its evaluations."""

import math

from o2o_diffusion.training.report import summarize


def test_a_summary_of_a_dip():
    scores = {0: 50.0, 10: 20.0, 20: 40.0, 30: 10.0, 40: 70.0}
    evaluations = [{"env_steps": k, "score": v, "score_se": 3.0, "unit": "raw return"} for k, v in scores.items()]
    evaluations[-1]["score_se"] = 4.0
    summary = summarize(evaluations, {"seed": 7})
    assert (summary["worst_early_score"], summary["worst_early_step"], summary["worst_score"]) == (20.0, 10, 10.0)
    assert (summary["score_at_switch"], summary["final_score"], summary["gain"]) == (50.0, 70.0, 20.0)
    assert summary["gain_se"] == 5.0 and math.isclose(summary["area_under_curve"], 38.0) and summary["seed"] == 7
