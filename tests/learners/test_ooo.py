from copy import deepcopy

import pytest
import torch
from builders import SPEC, make_batch, make_replay, names, with_equal_draws

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.ooo import OOO
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Source

BUDGET = Budget(pretrain_updates=3, online_steps=10_000)


def learner(base="iql", retrain_updates=7, **settings):
    own = {"hidden": [8, 8], "batch_size": 16} | settings
    config = OOO.Config(base=base, settings=own, retrain_updates=retrain_updates, novelty_hidden=(8, 4))
    return OOO(config, SPEC, seed=0)


def seen_by_base(ooo, batch):
    """The batch that the base is updated with."""
    seen, update = [], ooo.base.update
    ooo.base.update = lambda rows: seen.append(rows) or update(rows)
    ooo.update(batch)
    return seen[0]


def test_the_bonus_is_added_online_only_and_stored_rewards_stay():
    ooo, replay, b = learner(), make_replay(), make_batch(16)
    stored = replay.online.all().rewards.clone()
    pretrain, finetune, retrain = ooo.phases(BUDGET)
    for phase in (pretrain, retrain):
        ooo.begin_phase(phase, replay)
        assert torch.equal(seen_by_base(ooo, b).rewards, b.rewards)
    ooo = learner()
    ooo.begin_phase(finetune, replay)
    copy = deepcopy(ooo.novelty)
    expected = b.rewards + 10 * copy.bonus(b.next_observations)
    rewards = seen_by_base(ooo, b).rewards
    torch.testing.assert_close(rewards, expected)
    assert (rewards - b.rewards).min() > 0 and torch.equal(replay.online.all().rewards, stored)


def test_the_network_learns_from_a_quarter_of_the_rows():
    ooo, b = learner(), make_batch(4000)
    ooo.novelty.moments.measure(b.next_observations)
    loss, uniform = with_equal_draws(ooo, lambda: ooo.novelty_loss(b), lambda: ooo.rng.uniform(4000))
    chosen = uniform < 0.25
    torch.testing.assert_close(loss, ooo.novelty.error(b.next_observations)[chosen].sum() / 1000)
    assert abs(chosen.float().mean() - 0.25) < 0.02


def test_the_last_phases_are_the_offline_ones_on_all_rows_with_a_fresh_learner():
    spot = learner("spot", behavior_updates=5)
    *_, finetune, behavior, retrain = spot.phases(BUDGET)
    assert finetune.is_online and [p.fresh for p in spot.phases(BUDGET)] == [False, False, False, True, False]
    assert (behavior.name, behavior.updates, retrain.name, retrain.updates) == ("behavior", 5, "pretrain", 7)
    assert all((phase.shares.offline, phase.shares.online) == (0.5, 0.5) for phase in (behavior, retrain))
    rlpd = learner("rlpd").phases(BUDGET)[-1]  # has no offline phase of its own
    assert rlpd.fresh and rlpd.updates == 7 and not rlpd.is_online
    assert not any(phase.fresh for phase in learner().phases(Budget(pretrain_updates=3, online_steps=0)))


@pytest.mark.parametrize("base", [path.stem for path in names("learner") if path.stem != "ooo"])
def test_it_explores_with_every_learner_and_retrains_it(base):
    explorer, replay = learner(base), make_replay()
    for phase in explorer.phases(Budget(pretrain_updates=3, online_steps=50_000)):
        ooo = learner(base) if phase.fresh else explorer
        explorer = ooo
        ooo.begin_phase(phase, replay)
        if phase.learns:
            metrics = ooo.update(make_batch(phase.batch_size))
            assert ("novelty_loss" in metrics) == phase.is_online
            assert all(value.isfinite() for name, value in metrics.items() if name.endswith("loss"))


def test_a_run_retrains_on_exactly_the_rows_collected_by_then(tmp_path, short_run):
    own = ["learner=ooo", "learner.settings.hidden=[16,16]", "learner.settings.batch_size=32", "sampler.ramp=0"]
    own += ["learner.retrain_updates=9", "learner.novelty_hidden=[8,4]", f"output={tmp_path / 'run'}", "generator=none"]
    loop = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*short_run, *own])).loop
    explorer, fresh = loop.learner, []
    while loop.phase < len(loop.phases):
        before = loop.learner
        loop.tick()
        if loop.learner is not before:
            fresh.append((loop.learner, len(loop.replay.online)))
    assert len(fresh) == 1 and fresh[0][1] == 80 == loop.env_steps and loop.learner is fresh[0][0] is not explorer
    assert loop.learner.base.num_updates == 9 and explorer.base.num_updates == 40 + 60
    assert loop.evaluations[-1]["updates"] == loop.updates == 109
    assert not loop.learner.novelty_optimizer.means[0].any()  # the fresh learner has never had a bonus
    assert len(loop.replay.pools[Source.OFFLINE]) == 400


def test_a_wrong_setting_of_the_base_is_named():
    with pytest.raises(InputError, match=r"unknown setting 'iql.expectlie'.*did you mean 'expectile'"):
        OOO(OOO.Config(settings={"expectlie": 0.5}), SPEC, seed=0)
    with pytest.raises(InputError, match="unknown learner 'iqll'"):
        OOO(OOO.Config(base="iqll"), SPEC, seed=0)


def test_it_answers_with_its_base():
    ooo, b = learner(), make_batch(5)
    ooo.begin_phase(Phase("pretrain", updates=1), make_replay())
    assert torch.equal(ooo.values(b.observations, b.actions), ooo.base.values(b.observations, b.actions))
    assert torch.equal(ooo.log_prob(b.observations, b.actions), ooo.base.log_prob(b.observations, b.actions))
