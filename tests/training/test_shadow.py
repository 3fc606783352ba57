"""Rows are refused if copies of the learner get worse with them; the learner itself is not touched."""

import json
import math
from copy import deepcopy

import pytest
import torch
from builders import SPEC, LinearPolicy, leaves, make_replay, raw_batch

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.sac import SAC
from o2o_diffusion.replay import Replay
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Cadence, GeneratedShare, Phase, Shares
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.training.shadow import (
    Effect,
    Shadow,
    is_held_out,
    judged,
    log_prob_gap,
    shadow_test,
    trained,
    with_generated,
)
from o2o_diffusion.types import Source, Transitions

PHASE = Phase("finetune", env_steps=10, cadence=Cadence(), shares=Shares(0.5, 0.5), batch_size=64)
LIMITS = Shadow(updates=100, rows=200)


class Half:
    """A generator that has made its rows: half of a batch."""

    def share(self, replay):
        return GeneratedShare(0.5)


def parts(rows: Transitions):
    replay = make_replay(offline=700, online=700, generated_online=400)
    replay.replace_generated({Source.GENERATED_ONLINE: rows})
    learner = SAC(SAC.Config(hidden=(32, 32), learning_rate=1e-2), SPEC, seed=0)
    learner.begin_phase(PHASE, replay)
    return learner, Mixture(Mixture.Config(ramp=0), SPEC, seed=0), Refresher(Half()), replay, PHASE


def rows(scale: float = 1.0) -> Transitions:
    real = raw_batch(700, seed=int(Source.ONLINE))[:400]  # online rows themselves
    return real.where(rewards=scale * real.rewards)


def test_real_rows_are_accepted_and_wrong_rewards_refused():
    effects = [shadow_test(LIMITS, *parts(rows(scale))) for scale in (1.0, 30.0)]
    assert [effect.accepted for effect in effects] == [True, False]
    assert effects[0].td_error < 1.2 < 2 < effects[1].td_error
    assert "TD errors on held-out real rows" in str(effects[1]) and "(limit 1.2)" in str(effects[1])


def test_nothing_but_copies_is_changed():
    learner, sampler, *rest = parts(rows())
    before = deepcopy([leaves(part.state_dict()) for part in (learner, sampler)])
    shadow_test(LIMITS, learner, sampler, *rest)
    for part, state in zip((learner, sampler), before, strict=True):
        assert all(
            torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else value == state[name]
            for name, value in leaves(part.state_dict()).items()
        )


def test_the_share_of_generated_rows_is_the_generators():
    replay = parts(rows())[3]
    draw = replay.union(torch.arange(64))
    stored = with_generated(draw, GeneratedShare(0.5), replay, ShardedRng(0))
    assert (stored.pools == Source.GENERATED_ONLINE).tolist() == [True] * 32 + [False] * 32
    assert torch.equal(stored.sources, stored.pools) and torch.equal(stored.rows[32:], draw.rows[32:])
    marked = with_generated(draw, GeneratedShare(0.25, at_batch_time=True), replay, ShardedRng(0))
    assert torch.equal(marked.rows, draw.rows) and torch.equal(marked.pools, draw.pools)
    assert marked.sources.tolist() == [Source.GENERATED_OFFLINE] * 16 + [Source.OFFLINE] * 48


@pytest.mark.parametrize("generated", [True, False])
def test_copies_do_not_learn_from_held_out_rows(generated):
    def pupil(change: float):
        learner, sampler, refresher, replay, phase = parts(rows())
        for source in (Source.OFFLINE, Source.ONLINE):
            pool = replay.pools[source]
            assert 0 < pool.held_out.sum() < len(pool)
            pool.fields["rewards"][: len(pool)][pool.held_out] += change
        copy = trained(3, learner, sampler, refresher, replay, phase, generated=generated)
        return torch.cat([p.flatten() for p in copy.critic.parameters()])

    assert torch.equal(pupil(0.0), pupil(5.0))


def test_judged_rows_are_held_out_and_evenly_spaced():
    replay = make_replay(offline=2_000, online=700)
    real, mask = judged(replay, 50), is_held_out(replay)
    for source, batch in real.items():
        assert len(batch) <= 50 and mask[batch.rows + replay.starts[source]].all()
    assert real[Source.OFFLINE].rows.diff().min() >= 1


def test_the_gap_of_log_probabilities_against_its_closed_form():
    replay, offset = make_replay(offline=200, online=0, generated_offline=200), 0.3
    agent = LinearPolicy()
    for source, shift in ((Source.OFFLINE, 0.0), (Source.GENERATED_OFFLINE, offset)):
        batch = raw_batch(200, seed=int(source))
        replay.pools[source].append(batch.where(actions=agent.act(batch.observations, deterministic=True) + shift))
    gap = log_prob_gap(agent, replay, judged(replay, 100), 100)  # pyright: ignore[reportArgumentType]
    assert gap == pytest.approx(0.5 * (offset * math.e) ** 2, rel=1e-4)  # the policy's deviation is exp(-1)


def test_a_ratio_that_is_not_finite_refuses_and_an_unknown_density_does_not():
    assert not Effect(math.nan, 0.0, LIMITS).accepted
    assert Effect(1.0, math.nan, LIMITS).accepted and "nats" not in str(Effect(1.0, math.nan, LIMITS))
    assert not Effect(1.0, 1.5, LIMITS).accepted


def test_an_empty_replay_of_one_label_is_judged_on_the_other():
    replay = Replay(SPEC, {Source.ONLINE: 5})
    replay.online.append(raw_batch(5))
    assert list(judged(replay, 10)) == [Source.ONLINE] and len(judged(replay, 10)[Source.ONLINE]) == 5


def test_a_run_goes_on_with_real_rows_after_a_refusal(tmp_path, tiny_run, tiny_cfdg, capsys):
    own = ["shadow.updates=2", "shadow.td_error=1e-6", "shadow.log_prob=1e6", f"output={tmp_path / 'run'}"]
    run = Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, [*tiny_run, *tiny_cfdg, *own]))
    assert run.execute() == 0
    refresher, replay = run.loop.refresher, run.loop.replay
    assert (refresher.count, refresher.refused, refresher.rows, replay.num_generated) == (2, 2, 0, 0)
    assert "refresh 1 is refused: with its rows, TD errors" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "shadow"]
    assert len(found) == 2 and all(line["td_error_ratio"] > 0 and "log_prob_gap" in line for line in found)
