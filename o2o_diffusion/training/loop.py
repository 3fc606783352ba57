"""The loop: collect, refresh the generator when due, sample, update, evaluate, checkpoint.

It knows no component by name. A run is a sequence of ticks, each one update, one environment step, one evaluation or
one step of a refresh; between any two of them it can be saved, and a restored run goes on to the same weights.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from o2o_diffusion.distributed import agree, num_processes, rank, shard
from o2o_diffusion.environments.collector import Interaction
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Generator, Learner, Sampler
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.state import Stateful
from o2o_diffusion.training.checkpoint import save_checkpoint
from o2o_diffusion.training.logger import Logger
from o2o_diffusion.training.probe import Probe
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.types import Episode, Metrics, Source

GENERATED = (Source.GENERATED_OFFLINE, Source.GENERATED_ONLINE)


class Finetuning(Stateful):
    """One run: a learner's phases on a replay, with a generator and a sampler.

    `interrupted` is asked between ticks; when it says yes the run is saved and `run` returns False. `facts` is saved
    with the state: what a resumed run must find again. `make_learner` serves phases that begin with a fresh learner.
    """

    @dataclass(frozen=True)
    class Config:
        """The run's own settings."""

        seed: Annotated[int, "decides everything random in the run"] = 0
        discount: Annotated[float, "of future rewards"] = 0.99
        pretrain_updates: Annotated[int, "offline updates"] = 10_000
        online_steps: Annotated[int, "environment steps of fine-tuning, warm-up included"] = 10_000
        warmup_steps: Annotated[int, "first environment steps, in which nothing is trained"] = 1_000
        updates_per_step: Annotated[int, "updates after every environment step"] = 3
        online_capacity: Annotated[int, "rows of the online ring"] = 1_000_000
        eval_interval: Annotated[int, "environment steps between evaluations"] = 1_000
        eval_episodes: Annotated[int, "episodes of an evaluation on the way"] = 10
        final_eval_episodes: Annotated[int, "episodes of the evaluations at the switch and at the end"] = 20
        log_interval: Annotated[int, "updates between lines of metrics"] = 500
        checkpoint_interval: Annotated[int, "ticks (updates and environment steps) between checkpoints"] = 20_000
        keep_checkpoints: Annotated[int, "newest checkpoints to keep; 0: all"] = 1
        pretrained: Annotated[str | None, "folder of a pretraining run whose learner to start from"] = None
        output: Annotated[str | None, "folder of the run; null: a new one under runs/"] = None
        threads: Annotated[int, "threads per process; 0: the cores divided by the processes"] = 1
        matmul: Annotated[str, "float32 matrix products: highest, medium (oneDNN), or auto: medium if exact"] = "auto"

        def __post_init__(self):
            for name in (
                "eval_interval",
                "eval_episodes",
                "final_eval_episodes",
                "log_interval",
                "checkpoint_interval",
            ):
                if getattr(self, name) < 1:
                    raise ValueError(f"'{name}' is {getattr(self, name)}, expected at least 1")
            if 0 < self.online_steps <= self.warmup_steps:
                raise ValueError(f"'warmup_steps' is {self.warmup_steps}, expected less than 'online_steps'")

    counters = (
        "phase", "owed", "phase_steps", "updates", "env_steps", "ticks", "seconds", "facts",
        "evaluated_at", "evaluations",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        *,
        learner: Learner,
        generator: Generator,
        sampler: Sampler,
        replay: Replay,
        interaction: Interaction,
        evaluator: Evaluator | None,
        logger: Logger,
        folder: Path,
        autocast: Callable[..., AbstractContextManager] = nullcontext,
        interrupted: Callable[[], bool] = lambda: False,
        facts: dict[str, Any] | None = None,
        make_learner: Callable[[], Learner] | None = None,
    ):
        self.config, self.folder, self.autocast, self.interrupted = config, folder, autocast, interrupted
        self.facts, self.make_learner = facts or {}, make_learner
        self.learner, self.sampler, self.replay, self.refresher = learner, sampler, replay, Refresher(generator)
        self.interaction, self.evaluator, self.logger = interaction, evaluator, logger
        self.probe = Probe(replay)
        budget = Budget(config.pretrain_updates, config.online_steps, config.warmup_steps, config.updates_per_step)
        phases = learner.phases(budget)
        self.phases = tuple(phase for phase in phases if phase.env_steps) if config.pretrained else phases
        self.total_steps = sum(phase.env_steps for phase in self.phases)
        self.phase = -1
        self.owed = self.phase_steps = self.updates = self.env_steps = self.ticks = 0
        self.evaluated_at = [-1, -1]
        self.evaluations: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}

    @property
    def generator(self) -> Generator:
        """What makes the generated rows."""
        return self.refresher.generator

    def run(self) -> bool:
        """Go on to the end; returns False when interrupted. The last state is saved either way."""
        while self.phase < len(self.phases):
            if self._stop():
                self.save()
                return False
            self.tick()
            if self.ticks % self.config.checkpoint_interval == 0:
                self.save()
        self.save()
        return True

    def tick(self) -> None:
        """The one thing that is due."""
        phase = self.phases[self.phase] if self.phase >= 0 else Phase("start")
        self.ticks += 1
        if self.refresher.left > 0:
            self._timed("generator", self.refresh)
        elif self.owed > 0:
            self._timed(phase.name, self.update, phase)
        elif self.evaluation_due(phase):
            self._timed("evaluation", self.evaluate, phase)
        elif self.refresh_due(phase):
            self._timed("generator", self.begin_refresh)
        elif self.phase_steps < phase.env_steps:
            self._timed("environment", self.collect, phase)
        else:
            self.begin_phase()

    def begin_phase(self) -> None:
        """Go on to the learner's next phase."""
        self.phase += 1
        if self.phase == len(self.phases):
            return
        phase = self.phases[self.phase]
        self.phase_steps, self.owed = 0, phase.updates
        if phase.fresh and self.make_learner is not None:
            self.learner = self.make_learner()
        self.announce_shares(phase)
        self.learner.begin_phase(phase, self.replay)

    def announce_shares(self, phase: Phase) -> None:
        """The learner declares the real shares, a generator that has rows its own; the sampler's settings win."""
        has_rows = any(len(self.replay.pools[source]) for source in GENERATED)
        shares = phase.shares.with_generated(self.generator.generated) if has_rows else phase.shares
        self.sampler.begin_phase(shares)

    def update(self, phase: Phase) -> None:
        """One update of the learner on one batch; the run's reward transform is applied here."""
        with self.autocast():
            metrics = self.sampler.update(self.replay, self.learner)
            batch = shard(self.sampler.sample(self.replay, self.learner.batch_size))
            metrics |= self.learner.update(batch.where(rewards=self.replay.transform(batch.rewards)))
        self.owed -= 1
        self.updates += 1
        if self.updates % self.config.log_interval == 0:
            self.log(phase.name, metrics | self.look(phase))
        if phase.env_steps == 0:
            self.logger.progress(phase.name, phase.updates - self.owed, phase.updates)

    def look(self, phase: Phase) -> Metrics:
        """Mean Q of the probe rows; online a warning when it runs away."""
        metrics = self.probe.measure(self.learner)
        if phase.env_steps and metrics:
            warning = self.probe.change(float(metrics["probe_q"]), self.env_steps)
            if warning is not None:
                self.logger.warn(warning)
        return metrics

    def collect(self, phase: Phase) -> None:
        """One step of the environment into the replay."""
        if not self.interaction.under_way:
            self.learner.begin_episode()
            self.interaction.begin_episode()
        episode = self.interaction.step(self.learner, self.replay)
        self.phase_steps += 1
        self.env_steps += 1
        if phase.learns:
            self.owed += phase.cadence.owed(self.phase_steps, len(episode) if episode else None)
        if episode is not None:
            self.end_episode(episode)
        score = f"{self.evaluations[-1]['score']:.1f}" if self.evaluations else "-"
        shown = {"score": score, "return": f"{self.interaction.last_return:.0f}"}
        self.logger.progress("fine-tuning", self.env_steps, self.total_steps, **shown)

    def end_episode(self, episode: Episode) -> None:
        """Tell the learner and the log."""
        self.learner.end_episode(episode)
        self.log("episode", {"return": float(episode.rewards.sum()), "length": float(len(episode))})

    def refresh_due(self, phase: Phase) -> bool:
        """While there are steps to learn from, when the generator says so."""
        return phase.learns and self.phase_steps < phase.env_steps and self.refresher.due(self.replay, self.env_steps)

    def begin_refresh(self) -> None:
        """Prepare the generator's updates, which are ticks of their own."""
        self.refresher.begin(self.replay, self.learner, self.env_steps)
        if self.refresher.left == 0:
            self.end_refresh({})

    def refresh(self) -> None:
        """One update of the generator."""
        refresher = self.refresher
        with self.autocast():
            metrics = refresher.update(self.replay, self.learner)
        self.logger.progress(f"refresh {refresher.count + 1}", refresher.total - refresher.left, refresher.total)
        if refresher.left == 0:
            self.end_refresh(metrics)

    def end_refresh(self, metrics: Metrics) -> None:
        """Generated rows give way to new ones, and get their share of batches."""
        with self.autocast():
            found = self.refresher.finish(self.replay, self.learner)
        if found["auc"] > self.generator.max_auc:
            self.logger.warn(
                f"refresh {self.refresher.count} is not used: a classifier tells its rows from real ones with AUC"
                f" {found['auc']:.3f} (generator.max_auc {self.generator.max_auc}); going on with real rows"
            )
        self.announce_shares(self.phases[self.phase])
        self.log("refresh", {**metrics, **found})

    def evaluation_due(self, phase: Phase) -> bool:
        """At the switch, before its phase begins; every `eval_interval` environment steps; and at the end."""
        if self.evaluated_at == [self.updates, self.env_steps]:
            return False
        if self.phase < 0:
            return self.config.pretrained is not None
        if phase.env_steps == 0:
            following = self.phases[self.phase + 1 :]
            return not following or following[0].env_steps > 0
        return self.env_steps % self.config.eval_interval == 0 or self.env_steps == self.total_steps

    def evaluate(self, phase: Phase) -> None:
        """Score the deterministic policy on the evaluation environments."""
        self.evaluated_at = [self.updates, self.env_steps]
        if self.evaluator is None:
            return
        at_end = self.env_steps in (0, self.total_steps)
        result = self.evaluator(self.learner, self.config.final_eval_episodes if at_end else self.config.eval_episodes)
        where = {"phase": phase.name, "updates": self.updates, "env_steps": self.env_steps}
        self.evaluations.append({**where, **result.summary()})
        self.log("evaluation", result.summary())

    def log(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """One line of metrics; a run whose losses are not finite ends here, and its last checkpoint stays."""
        for name, value in metrics.items():
            if name.endswith("loss") and not math.isfinite(float(value)):
                raise InputError(f"{name} is {float(value)} after {self.updates} updates: the {kind} diverged")
        self.logger.log({"kind": kind, **metrics}, updates=self.updates, env_steps=self.env_steps)

    def save(self) -> None:
        """Write a checkpoint from which `load_state_dict` continues."""
        if rank() == 0:
            save_checkpoint(
                self.folder / "checkpoints", self.ticks, self.state_dict(), keep=self.config.keep_checkpoints
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, in the middle of its phase."""
        super().load_state_dict(state)
        if 0 <= self.phase < len(self.phases):
            self.announce_shares(self.phases[self.phase])

    def _stop(self) -> bool:
        if num_processes() > 1 and self.ticks % 64:  # asking the others costs a message
            return False
        return agree(self.interrupted(), self.replay.memory["rewards"].device)

    def _timed(self, part: str, action: Callable[..., None], *args: Any) -> None:
        start = time.perf_counter()
        action(*args)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
