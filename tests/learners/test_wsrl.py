from copy import deepcopy
from pathlib import Path

import pytest
import torch
from builders import FINETUNE, PRETRAIN, SPEC, make_batch, make_replay, with_equal_draws

from o2o_diffusion.errors import InputError
from o2o_diffusion.learners.cal_ql import CalQL
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.learners.wsrl import WSRL
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Budget, Cadence
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.types import Source

BUDGET = Budget(pretrain_updates=10, online_steps=20_000, warmup_steps=1000)


def learner(**settings):
    small = {"hidden": (32, 32), "penalty_actions": 4, "batch_size": 16}
    return WSRL(WSRL.Config(**(small | settings)), SPEC, seed=0)


def test_phases_keep_no_offline_rows_and_warm_up_with_a_frozen_policy():
    pretrain, warmup, finetune = learner().phases(BUDGET)
    assert (pretrain.updates, pretrain.shares.offline) == (10, 1)
    assert (warmup.env_steps, warmup.learns, warmup.updates) == (5000, False, 0)
    assert (finetune.env_steps, finetune.shares.offline, finetune.shares.online) == (15_000, 0, 1)
    sampler = Mixture(Mixture.Config(), SPEC, seed=0)
    assert (sampler.sample(make_replay(online=5), finetune.shares, 64).sources == Source.ONLINE).all()


def test_a_run_does_nothing_in_the_warm_up(tmp_path: Path, tiny_run):
    overrides = [*tiny_run, "generator=none", "learner=wsrl", "learner.warmup_steps=50", f"output={tmp_path / 'run'}"]
    loop = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, overrides)).loop
    while loop.env_steps < 50:
        loop.tick()
    before = deepcopy(loop.learner.state_dict())
    assert loop.updates == 40 and loop.updates_due == 0
    while loop.env_steps < 51:
        loop.tick()
    after = loop.learner.state_dict()
    assert all(torch.equal(w, after["critic"][name]) for name, w in before["critic"].items())
    loop.tick()
    assert loop.updates == 41 and loop.learner.num_updates == 41


def test_networks_and_optimizers_go_on_after_the_switch():
    wsrl, replay = learner(), make_replay()
    pretrain, *online = wsrl.phases(BUDGET)
    wsrl.begin_phase(pretrain, replay)
    for _ in range(3):
        wsrl.update(make_batch(16))
    before = deepcopy(wsrl.state_dict())
    for phase in online:
        wsrl.begin_phase(phase, replay)
    after = wsrl.state_dict()
    for name in ("actor", "critic", "target_critic"):
        assert all(torch.equal(w, after[name][key]) for key, w in before[name].items())
    moments = [state["critic_optimizer"]["state"][0]["exp_avg"] for state in (before, after)]
    assert torch.equal(*moments) and moments[0].abs().sum() > 0
    wsrl.update(make_batch(64))
    assert wsrl.critic_optimizer.state_dict()["state"][0]["step"] == 3 + 4
    assert wsrl.actor_optimizer.state_dict()["state"][0]["step"] == 3 + 1


def test_online_updates_split_a_batch_among_critic_steps_without_a_penalty():
    wsrl, replay, seen = learner(), make_replay(), {"critic": [], "actor": []}
    wsrl.begin_phase(wsrl.phases(BUDGET)[-1], replay)
    assert wsrl.phase.batch_size == 64 and wsrl.conservatism == 0
    for part, rows in seen.items():
        method = getattr(wsrl, f"update_{part}")
        setattr(wsrl, f"update_{part}", lambda b, method=method, rows=rows: rows.append(b.rows) or method(b))
    metrics = wsrl.update(make_batch(64))
    assert "penalty" not in metrics and "actor_loss" in metrics
    assert [len(rows) for rows in seen["critic"]] == [16] * 4 and torch.equal(
        torch.cat(seen["critic"]), seen["actor"][0]
    )


def test_offline_updates_are_conservative():
    wsrl = learner()
    wsrl.begin_phase(wsrl.phases(BUDGET)[0], make_replay())
    assert wsrl.phase.batch_size == 16 and wsrl.conservatism == 5 and "penalty" in wsrl.update(make_batch(16))


def test_online_losses_are_sacs():
    wsrl, b = learner(), make_batch(16)
    wsrl.phase = FINETUNE
    sac_loss, metrics = with_equal_draws(wsrl, lambda: SAC.critic_loss(wsrl, b), lambda: wsrl.update_critic(b))
    assert torch.equal(metrics["critic_loss"], sac_loss.detach())


def test_target_critics_are_drawn_with_replacement():
    wsrl = learner()
    drawn = [wsrl.draw_members(2).tolist() for _ in range(1000)]
    assert 50 < sum(one == other for one, other in drawn) < 160  # a tenth
    assert {member for pair in drawn for member in pair} == set(range(10))


def test_policy_and_critics_have_layer_normalization():
    wsrl = learner(state_dependent_std=False)
    assert all(isinstance(norm, torch.nn.LayerNorm) for norm in wsrl.actor.mlp.norms)
    assert [tuple(norm.weight.shape) for norm in wsrl.critic.mlp.norms] == [(10, 1, 32)] * 2
    assert wsrl.policy(torch.randn(4, 3)).base.log_std.shape == (1, 2)


def test_the_penaltys_multiplier_is_a_softplus_that_begins_at_one():
    wsrl = learner(gap=0.5, conservatism=3.0)
    assert wsrl.multiplier().item() == pytest.approx(1.0) and wsrl.penalty_weight().item() == pytest.approx(3.0)
    (parameter,) = wsrl.multiplier.parameters()
    assert torch.equal(torch.nn.functional.softplus(parameter), wsrl.multiplier())


def test_a_restored_learner_is_in_the_same_phase():
    wsrl, restored = learner(), learner()
    wsrl.begin_phase(wsrl.phases(BUDGET)[-1], make_replay())
    restored.load_state_dict(wsrl.state_dict())
    assert restored.phase.is_online and restored.phase.batch_size == 64


@pytest.mark.parametrize(("updates", "pretrain"), [(0, True), (10, False)])
def test_starting_without_pretraining_is_refused(updates, pretrain):
    with pytest.raises(InputError, match="WSRL fine-tunes a pretrained policy") as error:
        learner(pretrain=pretrain).phases(Budget(pretrain_updates=updates, online_steps=100))
    assert "\n" not in str(error.value)


def test_calibrated_it_pretrains_with_cal_ql():
    calibrated, plain = learner(calibrated=True), learner()
    q, returns = torch.randn(2, 5, 12), torch.linspace(-1, 1, 5)
    assert torch.equal(calibrated.calibrate(q, returns), CalQL.calibrate(calibrated, q, returns))
    assert torch.equal(plain.calibrate(q, returns), q)
    assert calibrated.phases(BUDGET)[-1].cadence == Cadence(1, every=0)
    assert plain.phases(BUDGET)[-1].cadence == Cadence(1, every=1)
    replay = make_replay()
    replay.offline.fields["returns"].fill_(-torch.inf)
    plain.begin_phase(PRETRAIN, replay)
    with pytest.raises(InputError, match="none of the 200 offline rows has a return"):
        calibrated.begin_phase(PRETRAIN, replay)
