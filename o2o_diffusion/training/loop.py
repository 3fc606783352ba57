"""The loop: collect, refresh the generator when due, sample, update, evaluate, checkpoint.

The loop knows no component by name. A run is a sequence of ticks: updates, environment steps, evaluations and steps of
a refresh. It can be saved between any two ticks, and a restored run reaches the same weights.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval

from o2o_diffusion.distributed import broadcast, rank, shard
from o2o_diffusion.environments.collector import Collector
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.environments.guard import StepFault
from o2o_diffusion.protocols import DecidingGenerator, Generator, Learner, Sampler
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase, Shares
from o2o_diffusion.state import Stateful
from o2o_diffusion.training.checkpoint import save_checkpoint
from o2o_diffusion.training.guard import SkippedUpdates, check_finite
from o2o_diffusion.training.logger import Logger
from o2o_diffusion.training.probe import Probe
from o2o_diffusion.training.record import Record
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.training.session import Session
from o2o_diffusion.training.shadow import Shadow, shadow_test
from o2o_diffusion.types import Episode, Metrics, Transitions

START = Phase("start")


class Action(Enum):
    """The action of a tick."""

    REFRESH = "one update of the generator"
    BEGIN_REFRESH = "prepare the updates of a refresh"
    UPDATE = "one update of the learner"
    EVALUATE = "evaluate the policy"
    COLLECT = "one environment step"
    BEGIN_PHASE = "start the next phase"


class Loop(Stateful):
    """Runs a learner's phases on a replay, with a generator and a sampler.

    `identity` (data and reward scale) is saved with the state and checked on resuming. `make_learner` creates the
    learner of phases that start with a fresh one. `record` is the settings as saved with every checkpoint.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of the run itself."""

        seed: Annotated[int, "random seed of the run", Ge(0)] = 0
        num_seeds: Annotated[int, "independent runs in this process, with the seeds from `seed` on", Ge(1)] = 1
        discount: Annotated[float, "discount factor", Interval(ge=0, le=1)] = 0.99
        pretrain_updates: Annotated[int, "number of offline updates", Ge(0)] = 10_000
        online_steps: Annotated[int, "environment steps of fine-tuning, including warm-up", Ge(0)] = 10_000
        warmup_steps: Annotated[int, "environment steps before the first online update", Ge(0)] = 1_000
        updates_per_step: Annotated[int, "updates per environment step", Ge(0)] = 3
        online_capacity: Annotated[int, "capacity of the online pool, in rows", Ge(1)] = 1_000_000
        eval_interval: Annotated[int, "environment steps between evaluations", Ge(1)] = 1_000
        eval_episodes: Annotated[int, "episodes of each evaluation during fine-tuning", Ge(1)] = 10
        final_eval_episodes: Annotated[int, "episodes of the evaluations at the switch and at the end", Ge(1)] = 20
        log_interval: Annotated[int, "updates between logged metrics", Ge(1)] = 500
        checkpoint_interval: Annotated[int, "ticks (updates and environment steps) between checkpoints", Ge(1)] = 20_000
        shadow: Annotated[Shadow, "test of new rows on copies of the learner"] = field(default_factory=Shadow)
        keep_checkpoints: Annotated[int, "number of newest whole checkpoints to keep; 0: all", Ge(0)] = 2
        max_skipped_updates: Annotated[int, "updates in a row that are not finite before the run stops", Ge(1)] = 10
        step_timeout: Annotated[float, "seconds that a call of the environment may take; 0: no limit", Ge(0)] = 600.0
        pretrained: Annotated[str | None, "folder of a pretraining run to load the learner from"] = None
        output: Annotated[str | None, "folder of the run; null: a new one under runs/"] = None
        threads: Annotated[int, "threads per process; 0: cores divided by processes", Ge(0)] = 1
        matmul: Annotated[str, "float32 matmul precision: highest, medium (oneDNN), or auto: medium if exact"] = "auto"

        def __post_init__(self):
            if 0 < self.online_steps <= self.warmup_steps:
                raise ValueError(f"'warmup_steps' is {self.warmup_steps}, expected less than 'online_steps'")

    state_fields = (
        "phase", "updates_due", "phase_steps", "updates", "env_steps", "ticks", "seconds", "identity",
        "evaluated_at", "evaluations",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        *,
        session: Session,
        learner: Learner,
        make_learner: Callable[[], Learner],
        generator: Generator,
        sampler: Sampler,
        replay: Replay,
        collector: Collector,
        evaluator: Evaluator | None,
        logger: Logger,
        folder: Path,
        identity: Mapping[str, Any] | None = None,
        record: Record = Record(),  # noqa: B008 - it is frozen
    ):
        self.config, self.session, self.folder, self.identity = config, session, folder, dict(identity or {})
        self.learner, self.make_learner, self.sampler, self.replay = learner, make_learner, sampler, replay
        self.refresher, self.collector, self.evaluator = Refresher(generator), collector, evaluator
        self.logger, self.probe, self.record = logger, Probe(replay), record
        self.skipped = SkippedUpdates(config.max_skipped_updates)
        self.phases = self._phases()
        self.total_steps = sum(phase.env_steps for phase in self.phases)
        self.phase = -1
        self.updates_due = self.phase_steps = self.updates = self.env_steps = self.ticks = 0
        self.evaluated_at = [-1, -1]
        self.evaluations: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}

    @property
    def current(self) -> Phase:
        """The current phase."""
        return self.phases[self.phase] if 0 <= self.phase < len(self.phases) else START

    def run(self) -> bool:
        """Run to the end; returns False if interrupted. Saves the last state in both cases."""
        while not self.finished:
            if self.session.stop(self.ticks):
                self.save()
                return False
            self.tick()
        self.save()
        return True

    @property
    def finished(self) -> bool:
        """Whether every phase has ended."""
        return self.phase == len(self.phases)

    def tick(self) -> None:
        """Run the next action; a fault of the environment, which changes nothing, leaves a checkpoint behind."""
        try:
            self.do(self.due())
        except StepFault:
            self.save()
            raise

    def due(self) -> Action:
        """The next action; changes nothing."""
        phase = self.current
        if self.refresher.updates_due > 0:
            return Action.REFRESH
        if phase.updates and self.updates_due == phase.updates and self._refresh_due():  # before its first update
            return Action.BEGIN_REFRESH
        if self.updates_due > 0:
            return Action.UPDATE
        if self._evaluation_due():
            return Action.EVALUATE
        if self.phase_steps < phase.env_steps:
            return Action.BEGIN_REFRESH if self._refresh_due() else Action.COLLECT
        return Action.BEGIN_PHASE

    def do(self, action: Action) -> None:
        """Run `action`."""
        part, function = {
            Action.REFRESH: ("generator", self.refresh),
            Action.BEGIN_REFRESH: ("generator", self.begin_refresh),
            Action.UPDATE: (self.current.name, self.update),
            Action.EVALUATE: ("evaluation", self.evaluate),
            Action.COLLECT: ("environment", self.collect),
            Action.BEGIN_PHASE: ("phase starts", self.begin_phase),
        }[action]
        start = time.perf_counter()
        function()
        self.end_tick(part, time.perf_counter() - start)

    def end_tick(self, part: str, seconds: float) -> None:
        """Count a tick and its time, and write a checkpoint if one is due."""
        self.ticks += 1
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        if self.ticks % self.config.checkpoint_interval == 0:
            self.try_to_save()

    def begin_phase(self) -> None:
        """Start the next phase."""
        self.phase += 1
        self.phase_steps, self.updates_due = 0, self.current.updates
        if self.phase == len(self.phases):
            return
        if self.current.fresh:
            self.learner = self.make_learner()
        self.learner.begin_phase(self.current, self.replay)

    def update(self) -> None:
        """Run one update of the learner on one batch."""
        with self.session.autocast():
            batch, metrics = self.draw()
            metrics |= self.learner.update(batch)
        self.end_update(metrics)

    def draw(self) -> tuple[Transitions, Metrics]:
        """This process's part of a scaled batch, and the sampler's metrics."""
        metrics = self.sampler.update(self.replay, self.learner)
        draw = shard(self.sampler.sample(self.replay, self.shares(), self.current.batch_size))
        batch = self.refresher.augment(self.replay.gather(draw), self.replay, self.learner)
        return self.replay.scaled(batch), metrics

    def shares(self) -> Shares:
        """The learner's shares of real rows, with the generator's share while it is active."""
        real, generator = self.current.shares, self.refresher.generator
        return real.with_generated(generator.share(self.replay)) if self.refresher.is_active(self.replay) else real

    def end_update(self, metrics: Metrics) -> None:
        """Count and log an update."""
        phase = self.current
        self.updates_due -= 1
        self.updates += 1
        self.skipped.add(metrics)
        if self.updates % self.config.log_interval == 0:
            self.log(phase.name, metrics | self.probe_metrics())
        if not phase.is_online:
            self.logger.progress(phase.name, phase.updates - self.updates_due, phase.updates)

    def probe_metrics(self) -> Metrics:
        """Mean Q of the probe rows; online, warns about abrupt changes."""
        metrics = self.probe.measure(self.learner)
        if self.current.is_online and metrics:
            warning = self.probe.change(float(metrics["probe_q"]), self.env_steps)
            if warning is not None:
                self.logger.warn(warning)
        return metrics

    def collect(self) -> None:
        """Take one environment step and store it in the replay."""
        phase = self.current
        if not self.collector.under_way:
            self.collector.begin_episode()
            self.learner.begin_episode()
        episode = self.collector.step(self.learner, self.replay, random_actions=phase.random_actions)
        self.phase_steps += 1
        self.env_steps += 1
        if phase.learns:
            self.updates_due += phase.cadence.due(self.phase_steps, len(episode) if episode else None)
        if episode is not None:
            self.end_episode(episode)
        shown: dict[str, Any] = {"score": f"{self.evaluations[-1]['score']:.1f}"} if self.evaluations else {}
        if math.isfinite(self.collector.last_return):  # not before the first episode has ended
            shown["return"] = f"{self.collector.last_return:.0f}"
        if self.refresher.count:
            shown["refreshes"] = str(self.refresher.count)
        self.logger.progress("fine-tuning", self.env_steps, self.total_steps, **shown)

    def end_episode(self, episode: Episode) -> None:
        """Notify the learner and log the episode."""
        self.learner.end_episode(episode)
        self.log("episode", {"return": float(episode.rewards.sum()), "length": float(len(episode))})

    def begin_refresh(self) -> None:
        """Start a refresh; each update of the generator is a separate tick."""
        self.refresher.begin(self.replay, self.learner, self.env_steps)
        if self.refresher.updates_due == 0:
            self.end_refresh({})

    def refresh(self) -> None:
        """Run one update of the generator."""
        refresher = self.refresher
        with self.session.autocast():
            metrics = refresher.update(self.replay, self.learner)
        self.skipped.add(metrics)
        done = refresher.total - refresher.updates_due
        self.logger.progress(f"refresh {refresher.count + 1}", done, refresher.total, lines=0)
        if refresher.updates_due == 0:
            self.end_refresh(metrics)

    def end_refresh(self, metrics: Metrics) -> None:
        """Replace the generated rows if the gate accepts the new ones."""
        with self.session.autocast():
            verdict = self.refresher.finish(self.replay, self.learner)
        words = f"refresh {self.refresher.count} is {verdict}"
        if verdict.accepted:
            self.logger.note(words)
        else:
            self.logger.warn(f"{words}; going on with real rows")
        rows = {"rows": verdict.rows if verdict.accepted else 0, "asked_rows": verdict.asked_rows}
        self.log("refresh", {**metrics, **rows, "verdict": str(verdict), **verdict.metrics})
        if verdict.accepted and self.config.shadow.updates:
            self.test_shadow()

    def test_shadow(self) -> None:
        """Remove new rows that would make the learner worse."""
        parts = self.learner, self.sampler, self.refresher, self.replay, self.current
        with self.session.autocast():
            effect = shadow_test(self.config.shadow, *parts)
        self.log("shadow", {**effect.metrics, "accepted": float(effect.accepted)})
        if not effect.accepted:
            self.refresher.refuse(self.replay)
            self.logger.warn(f"refresh {self.refresher.count} is refused: {effect}; going on with real rows")

    def evaluate(self) -> None:
        """Score the deterministic policy in the evaluation environments."""
        policy_return = self.score() if self.evaluator is not None else 0.0
        self.evaluated_at = [self.updates, self.env_steps]
        generator = self.refresher.generator
        if self.env_steps == 0 and self.updates and isinstance(generator, DecidingGenerator):
            known = torch.tensor(policy_return, dtype=torch.float64, device=self.replay.device)
            self.log("decision", {"decision": str(generator.reconsider(float(broadcast(known))))})

    def score(self) -> float:
        """Record and log an evaluation; returns the policy's mean return."""
        assert self.evaluator is not None
        at_end = self.env_steps in (0, self.total_steps)
        result = self.evaluator(self.learner, self.config.final_eval_episodes if at_end else self.config.eval_episodes)
        where = {"phase": self.current.name, "updates": self.updates, "env_steps": self.env_steps}
        self.evaluations.append({**where, **result.summary()})
        self.log("evaluation", result.summary())
        return result.mean_return

    def log(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """Write one line of metrics; raises Fault if too many updates in a row were not finite."""
        if skipped := self.skipped.check(kind):
            self.logger.warn(f"{kind}: {skipped:,} updates since the last line were not finite and were skipped")
            metrics = {**metrics, "skipped_updates": skipped}
        self.logger.log({"kind": kind, **metrics}, updates=self.updates, env_steps=self.env_steps)

    def save(self) -> None:
        """Write a checkpoint for `load_state_dict`; raises Fault if a weight is not finite, OSError if it can't."""
        if rank() == 0:
            check_finite(learner=self.learner, generator=self.refresher.generator)
            folder, keep = self.folder / "checkpoints", self.config.keep_checkpoints
            state = self.state_dict() | {"settings": self.record.state()}
            save_checkpoint(folder, self.ticks, state, keep=keep, settings=self.record.digest)

    def try_to_save(self) -> None:
        """Write a checkpoint, or warn that it can't be written: the disk may have space again at the next one."""
        try:
            self.save()
        except OSError as error:
            self.logger.warn(f"{error}; the run goes on and tries again in {self.config.checkpoint_interval:,} ticks")

    def reopen(self) -> None:
        """Continue the last phase of a finished run whose environment steps have become more."""
        if self.finished and self.env_steps < self.total_steps:
            self.phase -= 1
            self.phase_steps = self.current.env_steps - (self.total_steps - self.env_steps)

    def _phases(self) -> tuple[Phase, ...]:
        """The learner's phases; with `pretrained`, only from the first environment step on."""
        c = self.config
        pretrained = c.pretrained is not None
        budget = Budget(c.pretrain_updates, c.online_steps, c.warmup_steps, c.updates_per_step, pretrained)
        phases = self.learner.phases(budget)
        return tuple(dropwhile(lambda phase: not phase.is_online, phases)) if pretrained else phases

    def _refresh_due(self) -> bool:
        return self.current.learns and self.refresher.due(self.replay, self.env_steps)

    def _evaluation_due(self) -> bool:
        """Whether to evaluate: at the switch to online, every `eval_interval` environment steps, and at the end."""
        if self.evaluated_at == [self.updates, self.env_steps]:
            return False
        if self.phase < 0:
            return self.config.pretrained is not None
        if not self.current.is_online:
            next_phases = self.phases[self.phase + 1 :]
            return not next_phases or next_phases[0].is_online
        return self.env_steps % self.config.eval_interval == 0 or self.env_steps == self.total_steps
