"""What the contracts carry, each shown by a toy component that runs through the loop."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from builders import LinearPolicy, make_replay
from contracts.policy_rows import PolicyRows
from contracts.seed_view import SeedView
from contracts.stacked import SmallLearner
from contracts.typed import GENERATORS

from o2o_diffusion.distributed import gather, shard
from o2o_diffusion.environments.environment import make_environment
from o2o_diffusion.samplers.mixture import Mixture
from o2o_diffusion.schedule import Shares
from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.finetune import Run
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Action, Loop
from o2o_diffusion.types import GENERATED, Source, Transitions


@pytest.fixture
def run(tmp_path, tiny_run):
    """Build a tiny run; a component is given as `learner="contracts.vae_learner.VAELearner"`."""

    def build(*overrides: str, name: str = "run", **targets: str) -> Run:
        chosen = []
        for group, target in targets.items():
            path = tmp_path / f"{target.rpartition('.')[2]}.yaml"
            path.write_text(f"target: {target}\n")
            chosen.append(f"{group}={path}")
        base = [
            *tiny_run,
            "modules=contracts",
            "generator=none",
            "learner=iql",
            *chosen,
            *overrides,
            f"output={tmp_path / name}",
        ]
        return Run(compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, base))

    return build


def batches(loop: Loop) -> list[Transitions]:
    """Run `loop` to its end; the batches that its learner got."""
    drawn, draw = [], loop.draw

    def remember():
        batch, metrics = draw()
        drawn.append(batch)
        return batch, metrics

    loop.draw = remember
    assert loop.run()
    return drawn


def test_a_learner_trains_a_vae_first_and_once_more_after_the_environment_steps(run):
    first = run("online_steps=0", learner="contracts.vae_learner.VAELearner", name="first")
    assert first.execute() == 0
    assert first.loop.learner.counts == {"vae": 5, "pretrain": 40, "last": 7}
    second = run(f"pretrained={first.folder}", learner="contracts.vae_learner.VAELearner")
    assert [phase.name for phase in second.loop.phases] == ["warmup", "finetune", "last"]
    assert second.execute() == 0
    assert second.loop.learner.counts == {"vae": 5, "pretrain": 40, "last": 14, "finetune": 60}
    evaluations = [(e["phase"], e["updates"]) for e in second.loop.evaluations]
    assert evaluations[-1] == ("last", second.loop.updates)


def test_rows_at_batch_time_have_the_samplers_shares_and_ramp(run):
    loop = run("sampler.ramp=80", generator="contracts.policy_rows.PolicyRows").loop
    while not loop.refresher.accepted or loop.due() is not Action.UPDATE:
        loop.tick()
    drawn = Transitions.cat([loop.draw()[0] for _ in range(200)])
    shares = torch.bincount(drawn.sources, minlength=4) / len(drawn)
    ramp = len(loop.replay.online) / 80  # of all shares but the offline one, which fills the batch
    expected = torch.tensor([0.25 + 0.75 * (1 - ramp), *[0.25 * ramp] * 3])
    torch.testing.assert_close(shares, expected, atol=2e-3, rtol=0)
    made = drawn[drawn.is_generated]
    real = loop.replay.offline.all().observations
    assert all((row == real).all(1).any() for row in made[made.sources == Source.GENERATED_OFFLINE][:20].observations)
    assert made.returns.isinf().all() and made.discounts.isfinite().all()
    assert loop.replay.num_generated == 0


def test_rows_at_batch_time_are_not_made_after_the_gate_refused(run):
    loop = run(
        "generator.gate.rows=50",
        "generator.gate.outside_range=0",
        "generator.gate.duplicates=0",
        generator="contracts.policy_rows.PolicyRows",
    ).loop
    assert not any(bool(batch.is_generated.any()) for batch in batches(loop))
    assert loop.refresher.count == loop.refresher.refused == 1


def test_rows_at_batch_time_do_not_disturb_exploration(run):
    explored = []
    for name, targets in (("none", {}), ("made", {"generator": "contracts.policy_rows.PolicyRows"})):
        loop = run(name=name, **targets).loop
        while loop.env_steps < 30:  # up to the refresh
            loop.tick()
        loop.tick()
        explored.append((loop.replay.online.all().actions.clone(), loop.collector.rng.state_dict()["generator"]))
    assert torch.equal(explored[0][0], explored[1][0]) and torch.equal(explored[0][1], explored[1][1])


def draw_and_augment() -> Transitions:
    """A whole batch with generated rows, put together from what each process made of its part."""
    replay, policy = make_replay(), LinearPolicy()
    generator = PolicyRows(PolicyRows.Config(), replay.spec, seed=0)
    generator.update(replay, policy)  # pyright: ignore[reportArgumentType]
    shares = Shares(offline=0.5, online=0.5).with_generated(generator.share(replay))
    draw = Mixture(Mixture.Config(ramp=0), replay.spec, seed=0).sample(replay, shares, 32)
    batch = generator.augment(replay.gather(shard(draw)), replay=replay, agent=policy)  # pyright: ignore[reportArgumentType]
    return batch.map(gather)


def work(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store{processes}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    batch = draw_and_augment()
    if rank == 0:
        torch.save(vars(batch), f"{folder}/rows{processes}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_rows_at_batch_time_are_the_same_on_two_processes(tmp_path):
    one = draw_and_augment()
    mp.spawn(work, args=(2, str(tmp_path)), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    two = torch.load(tmp_path / "rows2.pt")
    assert one.is_generated.sum() == 16
    for name, value in vars(one).items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, equal_nan=True, msg=name)


def test_windows_of_five_steps_end_with_their_episode(run):
    loop = run("task.max_episode_steps=7", generator="contracts.window_model.WindowModel").loop
    assert loop.run() and loop.refresher.count == 2
    lengths = loop.refresher.generator.lengths
    assert max(lengths) == 5 and min(lengths) < 5  # some begin near the end of an episode
    assert len(lengths) == 2 * 4 * 16


def test_an_oracle_steps_the_datas_own_environment(run):
    loop = run(generator="contracts.oracle.Oracle").loop
    assert loop.run() and loop.refresher.count == 2
    environment = make_environment(loop.replay.spec.data_environment)
    for source in GENERATED:
        rows = loop.replay.pools[source].all()
        assert len(rows) == 20
        cosine, sine, velocity = rows.observations[0].tolist()
        environment.reset(seed=0)
        angle = torch.tensor(sine).atan2(torch.tensor(cosine)).item()
        environment.unwrapped.state = [angle, velocity]  # pyright: ignore[reportAttributeAccessIssue]
        following, reward, *_ = environment.step(rows.actions[0].numpy())
        torch.testing.assert_close(rows.next_observations[0], torch.from_numpy(following), atol=1e-4, rtol=1e-4)
        assert rows.rewards[0] == pytest.approx(reward, abs=1e-4)


def test_the_environment_of_a_row_is_that_of_its_label():
    spec = make_replay().spec
    spec = replace(spec, environment="online", data_environment="data")  # pyright: ignore[reportArgumentType]
    assert [spec.environment_of(source) for source in Source] == ["data", "online", "data", "online"]


@pytest.mark.parametrize("at_batch_time", ["false", "true"])
def test_rows_are_generated_before_and_during_pretraining(run, at_batch_time):
    settings = [f"generator.at_batch_time={at_batch_time}", "online_steps=0"]
    loop = run(*settings, generator="contracts.noisy_rows.NoisyRows").loop
    drawn = batches(loop)
    assert len(drawn) == 40 and all(int(batch.is_generated.sum()) == 8 for batch in drawn)  # a quarter of 32
    assert all((batch.sources[batch.is_generated] == Source.GENERATED_OFFLINE).all() for batch in drawn)
    assert loop.refresher.count == (0 if at_batch_time == "true" else 1)


def test_two_stacked_seeds_equal_two_single_ones(run):
    def loops(kind: str, learners: list[SeedView]) -> list[Loop]:
        made = [run("pretrain_updates=200", "online_steps=0", f"seed={k}", name=f"{kind}{k}").loop for k in (0, 1)]
        for loop, learner in zip(made, learners, strict=True):
            loop.learner = learner
            loop.phases = (replace(loop.phases[0], updates=200, batch_size=32),)
        return made

    spec = make_replay().spec
    spec = replace(spec, observation_dim=3, action_dim=1)
    singles = [SmallLearner(spec, [k]) for k in (0, 1)]
    for loop in loops("single", [SeedView(learner) for learner in singles]):
        assert loop.run()
    stacked = SmallLearner(spec, [0, 1])
    together = loops("stacked", [SeedView(stacked, 0), SeedView(stacked, 1)])
    while together[0].phase < len(together[0].phases):
        due = [loop.due() for loop in together]
        if due != [Action.UPDATE] * 2:
            for loop, action in zip(together, due, strict=True):
                loop.do(action)
            continue
        drawn = [loop.draw() for loop in together]
        metrics = stacked.update(Transitions.stack([batch for batch, _ in drawn]))
        for k, loop in enumerate(together):
            loop.end_update({name: value[k] for name, value in metrics.items()})
    for name, value in stacked.parameters.items():
        for k, single in enumerate(singles):
            start, end = SmallLearner.initial(spec, k)[name], single.parameters[name].detach()
            difference = (value[k].detach() - end).norm() / (end - start).norm()
            assert difference < 1e-3, (name, k, float(difference))


@pytest.mark.slow
def test_every_toy_generator_resumes_bit_for_bit(run, tmp_path):
    for cls in GENERATORS:
        target: Any = f"{cls.__module__}.{cls.__qualname__}"  # pyright: ignore[reportAttributeAccessIssue]
        whole, stopped = (run(generator=target, name=f"{target}-{part}") for part in ("whole", "stopped"))
        assert whole.loop.run()
        stopped.session.interrupted = lambda loop=stopped.loop: loop.ticks >= 95
        with contextlib.suppress(FileExistsError):
            Path(stopped.folder / "settings.yaml").write_text(stopped.settings.to_yaml())
        assert not stopped.loop.run()
        resumed = Run.resume(stopped.folder)
        assert resumed.loop.run()
        lines = [json.loads(line) for line in (stopped.folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()], target
