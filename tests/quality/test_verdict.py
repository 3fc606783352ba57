from o2o_diffusion.quality.verdict import CHECKS, Verdict
from o2o_diffusion.schedule import Gate

LABELS = {
    "offline": {"outside_range": {"generated": 0.33, "floor": 0.01}, "marginals": {"generated": [1.0], "floor": [1.0]}},
    "online": {
        "auc": {"generated": 0.8, "floor": 0.6},
        "actions": {"generated": 1.3, "floor": 1.0},
        "missed_endings": {"generated": 0.9},  # there are too few real ones
    },
}


def test_every_limit_has_a_check():
    assert {check.name for check in CHECKS} | {"rows"} == set(Gate.__dataclass_fields__)


def test_the_worst_finding_comes_first_and_each_is_held_against_its_limit():
    gate = Gate(outside_range=0.02, auc=0.25, actions=0.5)
    verdict = Verdict.of(LABELS, gate, 90, 100)
    assert [finding.check.name for finding in verdict.findings] == ["outside_range", "auc", "actions"]
    assert [round(finding.severity, 3) for finding in verdict.findings] == [16, 0.8, 0.6]
    assert not verdict.accepted and verdict.failed == verdict.findings[:1]
    limits = "(real rows 1%, limit 2% more)"
    assert str(verdict) == f"refused: 33% of the offline rows are outside the data's range {limits}"
    assert verdict.summary.splitlines()[:2] == [
        "refused",
        f"- 33% of the offline rows are outside the data's range {limits}",
    ]
    assert len(verdict.summary.splitlines()) == 4 and "1.3 times" in verdict.summary
    assert verdict.metrics == {"offline_outside_range": 0.33, "online_auc": 0.8, "online_actions": 1.3}


def test_large_limits_are_off():
    verdict = Verdict.of(LABELS, Gate(outside_range=1, auc=1, actions=1e9), 90, 100)
    assert verdict.accepted and str(verdict).startswith("accepted: nearest to a limit, 33% of the offline rows")
    assert Verdict(0, 0).accepted and str(Verdict(0, 0)) == "accepted without being judged"
