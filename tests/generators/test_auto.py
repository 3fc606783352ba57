"""A run decides by itself whether to generate; where it decides against, it is the run without a generator."""

from dataclasses import replace

import pytest
import torch
from builders import SPEC, leaves

from o2o_diffusion.decision import Circumstances, decide, reconsider
from o2o_diffusion.generators.auto import Auto
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop

FEW = Circumstances(10_000, updates_per_step=10, num_critics=2, layer_norm=True, data_return=1_000.0)
SMALL = ("width=16", "depth=1", "embedding_dim=8", "updates=5", "refresh_updates=5", "num_samples=40", "batch_size=32")


@pytest.mark.parametrize(
    ("change", "share", "reason"),
    [
        ({}, 0.5, "10,000 offline rows, 10 updates per step and 2 normalized critics"),
        ({"offline_rows": 0, "layer_norm": False}, 0.5, "no offline rows, 10 updates per step and 2 plain critics"),
        ({"updates_per_step": 1}, 0, "at 1 updates per step (2 normalized critics) real rows are not used up yet"),
        ({"offline_rows": 100_000}, 0, "100,000 offline rows are many"),
    ],
)
def test_the_decision_and_its_reason(change, share, reason):
    decision = decide(replace(FEW, **change))
    assert decision.share == share and reason in str(decision)
    assert str(decision).startswith("50% generated rows: " if share else "no generated rows: ")


def test_a_pretrained_policy_below_its_data_has_to_learn_these_first():
    decision = decide(FEW)
    assert reconsider(decision, FEW, 1_000.0) == decision
    below = reconsider(decision, FEW, 999.0)
    assert below.share == 0 and "(return 999) is below its data (1,000)" in below.reason
    assert reconsider(decision, replace(FEW, data_return=None), -1.0) == decision  # there are no data


def test_the_generator_is_chosen_by_the_data():
    for rows, name in ((10_000, "CFDG"), (0, "SynthER")):
        auto = Auto(Auto.Config(settings=SMALL), SPEC, seed=0)
        auto.decide(replace(FEW, offline_rows=rows))
        assert type(auto.generator).__name__ == name
        assert auto.share(Replay(SPEC)).share == 0.5 and auto.next_refresh(Replay(SPEC)).rows == 40


def run(folder, overrides, generator, *own):
    chosen = [f"generator={generator}", *own, f"output={folder / generator}"]
    made = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*overrides, *chosen]))
    plan = made.plan()
    made.loop.run()
    return made.loop, plan


def test_a_run_that_decides_against_equals_the_run_without_a_generator(tmp_path, tiny_run):
    loops = [run(tmp_path, tiny_run, name)[0] for name in ("none", "auto")]
    states = [leaves(loop.learner.state_dict()) for loop in loops]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]) if isinstance(value, torch.Tensor) else value == states[1][name]
    assert [e["score"] for e in loops[0].evaluations] == [e["score"] for e in loops[1].evaluations]
    assert loops[1].refresher.count == 0 < len(loops[1].evaluations)


def test_the_plan_says_what_is_decided_and_the_policys_score_may_change_it(tmp_path, tiny_run):
    own = [f"generator.settings=[{','.join(SMALL)},first_refresh=30,refresh_interval=30]", "updates_per_step=5"]
    loop, plan = run(tmp_path, tiny_run, "auto", *own)
    assert plan["decision"] == "50% generated rows: 400 offline rows, 5 updates per step and 2 plain critics"
    generator = loop.refresher.generator
    assert isinstance(generator, Auto) and generator.known is not None and generator.known.data_return is not None
    is_below = loop.evaluations[0]["mean_return"] < generator.known.data_return
    assert (loop.refresher.count == 0) == (generator.decision.share == 0) == is_below
