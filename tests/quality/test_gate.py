import pytest
import torch
from builders import SPEC, make_replay, raw_batch

from o2o_diffusion.quality import residuals
from o2o_diffusion.quality.gate import judge
from o2o_diffusion.quality.real import RealData
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import OPEN, Gate
from o2o_diffusion.types import Source, Transitions

OFFLINE, ONLINE = Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    monkeypatch.setattr(residuals, "UPDATES", 50)


def replay(online: int = 1_500) -> Replay:
    """1,500 offline rows around 0, of which 100 are held out, and `online` online ones around 5."""
    return make_replay(offline=1_500, online=online, centers=(0.0, 5.0))


def verdict(batches: dict[Source, Transitions], gate: Gate = Gate(rows=200), store: Replay | None = None):  # noqa: B008
    return judge(batches, dict.fromkeys(batches, 600), store or replay(), gate)


def failed(batch: Transitions, gate: Gate = Gate(rows=50)) -> set[str]:  # noqa: B008
    """The limits that rows of the offline label exceed; by default, those that are judged with few rows."""
    return {finding.check.name for finding in verdict({OFFLINE: batch}, gate).failed}


def test_rows_of_the_data_are_accepted_and_those_of_the_other_label_are_refused():
    good, bad = raw_batch(600, seed=2), raw_batch(600, seed=3)
    accepted = verdict({OFFLINE: good})
    assert accepted.accepted and (accepted.rows, accepted.asked_rows) == (600, 600)
    assert {finding.check.name for finding in accepted.findings} >= {"auc", "actions", "outcomes", "at_limits"}
    refused = verdict({OFFLINE: good, ONLINE: bad})
    assert {finding.label for finding in refused.failed} == {"online"}
    assert "auc" in {finding.check.name for finding in refused.failed}
    assert (
        str(refused).startswith("refused: ") and refused.metrics["online_auc"] > 0.99 > refused.metrics["offline_auc"]
    )


def test_what_no_classifier_is_needed_for():
    rows = raw_batch(600, seed=2)
    assert failed(rows[torch.arange(600) % 10]) == {"duplicates"}
    data = SPEC.flatten(replay().part(held_out=False).offline.all())
    low, high = data.amin(0), data.amax(0)
    corners = torch.where(SPEC.flatten(rows) > 0, high, low)
    assert failed(SPEC.unflatten(corners, OFFLINE)) == {"at_limits"}
    far = rows.where(rewards=rows.rewards + 10)
    assert failed(far) == {"outside_range"}
    assert failed(rows) == set()


def test_actions_and_outcomes_of_other_rows_are_unusual():
    """Actions that follow from the states, and outcomes from both, in real rows; shuffled in generated ones."""

    def linked(batch: Transitions) -> Transitions:
        actions = (batch.observations[:, :2] + 0.1 * batch.actions).tanh()
        following = batch.observations + 0.1 * actions.sum(1, keepdim=True) + 0.01 * batch.next_observations
        return batch.where(actions=actions, next_observations=following, rewards=actions[:, 0])

    store, order = Replay(SPEC, {Source.OFFLINE: 1_500}), torch.randperm(600, generator=torch.Generator())
    store.offline.append(linked(raw_batch(1_500)))
    rows = linked(raw_batch(600, seed=2))
    gate = Gate(rows=200, actions=0.5, outcomes=0.5)
    found = {
        name: {finding.check.name for finding in verdict({OFFLINE: batch}, gate, store).failed}
        for name, batch in (
            ("good", rows),
            ("actions", linked(rows).where(actions=rows.actions[order])),
            ("outcomes", rows.where(rewards=rows.rewards[order])),
        )
    }
    assert found["good"] == set() and "actions" in found["actions"] and "outcomes" in found["outcomes"]
    assert "actions" not in found["outcomes"]


def test_rows_that_are_not_finite_are_refused_even_by_an_open_gate():
    assert failed(raw_batch(0), OPEN) == {"dropped"} and failed(raw_batch(500), OPEN) == {"dropped"}
    assert verdict({OFFLINE: raw_batch(599)}, OPEN).accepted
    assert str(verdict({}, OPEN)) == "accepted without being judged"


def test_rows_without_real_ones_are_not_judged():
    far = {ONLINE: raw_batch(600, seed=3, center=5.0)}
    assert set(verdict(far, store=Replay(SPEC)).metrics) == {"online_dropped"}


def test_real_rows_are_held_out_ones_of_the_label_if_there_are_enough():
    own, other, few = (RealData.of(replay(online), ONLINE) for online in (1_500, 50, 300))
    assert own and other and few
    assert (len(own.held_out), len(own.training), own.seen) == (100, 1_400, False)
    assert own.held_out.observations.mean() > 4 and other.held_out.observations.mean() < 1
    assert (len(few.held_out), len(few.training), few.seen) == (150, 150, True)
    assert own.limits.shape == (2, SPEC.row_dim)  # of both labels
    assert own.limits[0, 0] < 0 and own.limits[1, 0] > 6
    assert RealData.of(Replay(SPEC), ONLINE) is None
