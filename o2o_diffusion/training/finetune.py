"""Fine-tuning runs: build the components from settings, show the plan, run, and write the results."""

import contextlib
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from o2o_diffusion.decision import Circumstances
from o2o_diffusion.environments.collector import Collector
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.environments.tasks import Task
from o2o_diffusion.errors import InputError
from o2o_diffusion.optimization import batch_part
from o2o_diffusion.protocols import DecidingGenerator, Generator
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import CONFIGS, PACKAGE, Settings
from o2o_diffusion.storage import lock
from o2o_diffusion.training.checkpoint import name_of, newest_whole
from o2o_diffusion.training.faults import reported
from o2o_diffusion.training.folders import (
    CHECKPOINTS,
    SETTINGS,
    SUMMARY,
    new_folder,
    open_run,
    save_settings,
)
from o2o_diffusion.training.logger import Logger
from o2o_diffusion.training.loop import Loop
from o2o_diffusion.training.plan import expected_seconds, num_refreshes, show_minutes, show_phases, show_pools
from o2o_diffusion.training.record import Record
from o2o_diffusion.training.report import save_curve, save_summary, show_plan, show_summary, summarize
from o2o_diffusion.training.session import EXPLORATION_OFFSET, Session, processor, seed_of, settled_heap
from o2o_diffusion.types import Source


class Run:
    """A new or resumed run in its folder."""

    def __init__(
        self,
        settings: Settings,
        folder: Path | None = None,
        state: dict[str, Any] | None = None,
        *,
        record: Record | None = None,
        task: Task | None = None,
    ):
        """Create a new run, or restore the interrupted run in `folder` from its saved `state` and `record`.

        `task` is that of the settings with its episodes, if it was made before; it is not changed.
        """
        self.settings, self.config, self.is_new = settings, settings.run, state is None
        logger = settings.components["logger"].config
        Logger.check(logger)
        self.folder = folder or new_folder(self.config.output, f"{run_name(settings)}_seed{self.config.seed}")
        self.session = Session(self.config.threads, self.config.matmul, tracker=logger.tracker, folder=self.folder)
        self.settings = settings.with_run(**self.session.choices())
        self.record = record or Record(self.settings.to_yaml())
        with self.session.accelerator.main_process_first():
            self.task: Task = copy(task) if task else settings.components["task"].build()
        self.loop = self._loop()
        self._check_phases()
        if state is not None:
            self._resume(state)
        elif self.config.pretrained is not None:
            self._start_from(Path(self.config.pretrained))

    @classmethod
    def resume(cls, folder: Path, overrides: Sequence[str] = ()) -> "Run":
        """Restore the interrupted run in `folder`, with `overrides` of its settings."""
        saved = open_run(folder, "--resume", overrides)
        return cls(saved.settings, folder, saved.state, record=saved.record)

    def execute(self) -> int:
        """Show the plan, run until finished or interrupted, write and show the results; returns the exit code."""
        self.session.listen()
        checkpoints = self.folder / CHECKPOINTS
        with self.locked(), reported(self.folder, checkpoints, self.folder):
            plan = self.plan()  # on every process: the updates it times are collective
            self.begin()
            if self.session.is_main:
                show_plan(plan)
            with settled_heap():
                finished = self.loop.run()
            self.loop.logger.close()
            if self.session.is_main and finished:
                show_summary(*self.report())
        if self.session.is_main and not finished:
            print(f"interrupted; continue with: --resume {self.folder}")
        self.session.close()
        return self.session.exit_code(finished=finished)

    def locked(self) -> contextlib.AbstractContextManager:
        """Hold the lock of the folder on the main process; raises InputError if another process has it."""
        return lock(self.folder) if self.session.is_main else contextlib.nullcontext()

    def begin(self) -> None:
        """Write the settings and the first checkpoint of a new run, so that it can be continued from now on.

        Raises InputError if another process has used the folder since this run was made.
        """
        if not self.session.is_main:
            return
        last = newest_whole(self.folder / CHECKPOINTS)
        if last != (None if self.is_new else self.folder / CHECKPOINTS / name_of(self.loop.ticks)):
            raise InputError(f"another process has run in {self.folder} meanwhile; start again")
        if self.is_new:
            save_settings(self.record.text, self.folder)
            self.loop.save()

    def plan(self) -> dict[str, str]:
        """Summary of the run, for the header."""
        loop, components, task = self.loop, self.settings.components, self.task
        generator = loop.refresher.generator
        return {
            "task": task.description,
            "score": task.scores.source if task.scores else "raw return or success rate",
            "rows": show_pools(loop.replay) or "none yet",
            "reward": f"{task.transform.scale:.4g} * r + {task.transform.bias:.4g} for the learner",
            "learner": components["learner"].target.__name__,
            "generator": f"{components['generator'].target.__name__}, {num_refreshes(loop)} refreshes",
            **({"decision": str(generator.decision)} if isinstance(generator, DecidingGenerator) else {}),
            **({"asked for by the method": self.settings.asked} if self.settings.origins else {}),
            "plan": show_phases(loop.phases),
            **self.session.plan(),
            "expected": show_minutes(self.expected_seconds()),
            "configurations": f"{CONFIGS} (package {PACKAGE})",
            "output": str(self.folder),
        }

    def expected_seconds(self) -> float:
        """Expected duration of the run, timed on throwaway components; all processes must call it."""
        return expected_seconds(self.loop, *(self.component(group) for group in ("learner", "generator", "sampler")))

    def _check_phases(self) -> None:
        name, phases = self.settings.components["learner"].target.__name__, self.loop.phases
        if not phases:
            raise InputError(f"there is nothing to do for {name}: pretrain_updates and online_steps leave no phase")
        if phases[0].updates and not self.task.dataset.num_transitions:
            raise InputError(
                f"{phases[0].updates} updates before the first step need a dataset; set pretrain_updates=0"
            )
        for phase in phases:
            batch_part(phase.batch_size, "learner.batch_size")

    def _loop(self) -> Loop:
        task, components = self.task, self.settings.components
        generator: Generator = self.component("generator")
        replay = self._replay(generator)
        task.load(replay)
        evaluator = self._evaluator() if self.session.is_main else None
        learner, sampler, collector = self.component("learner"), self.component("sampler"), self._collector()
        self.folder.mkdir(parents=True, exist_ok=True)  # only now, so that errors above leave no folder behind
        return Loop(
            self.config,
            session=self.session,
            learner=learner,
            make_learner=lambda: self.component("learner"),
            generator=generator,
            sampler=sampler,
            replay=replay,
            collector=collector,
            evaluator=evaluator,
            logger=Logger(components["logger"].config, self.folder, self.session.accelerator, self.settings.plain),
            folder=self.folder,
            record=self.record,
            identity={
                "dataset": task.dataset.fingerprint,
                "reward": [task.transform.scale, task.transform.bias, task.config.failure_reward],
            },
        )

    def _circumstances(self) -> Circumstances:
        """What a generator can decide by."""
        config, learner = self.config, self.settings.components["learner"].config
        return Circumstances(
            offline_rows=self.task.dataset.num_transitions,
            updates_per_step=config.updates_per_step,
            num_critics=getattr(learner, "ensemble_size", 2),
            layer_norm=getattr(learner, "layer_norm", False),
            data_return=self.task.dataset.mean_return,
        )

    def _replay(self, generator: Generator) -> Replay:
        """Create an empty replay with capacity for the dataset, the online rows and the generated rows."""
        task, config, empty = self.task, self.config, Replay(self.task.spec)
        capacities = generator.share(empty).counts(generator.next_refresh(empty).rows)
        capacities[Source.OFFLINE] = task.dataset.num_transitions
        capacities[Source.ONLINE] = max(1, min(config.online_capacity, config.online_steps))
        return Replay(
            task.spec,
            capacities,
            transform=task.transform,
            discount=config.discount,
            failure_reward=task.config.failure_reward,
            device=self.session.device,
        )

    def _collector(self) -> Collector:
        return Collector(
            self.task.make_environment() if self.session.is_main else None,
            self.task.spec,
            seed=seed_of(self.config.seed, "environment"),
            exploration_seed=seed_of(self.config.seed, "learner") + EXPLORATION_OFFSET,
            timeout=self.config.step_timeout,
            device=self.session.device,
        )

    def _evaluator(self) -> Evaluator:
        return Evaluator(
            self.task.environment,
            episodes=self.config.final_eval_episodes,
            seed=seed_of(self.config.seed, "evaluation"),
            references=self.task.scores,
            timeout=self.config.step_timeout,
            device=self.session.device,
        )

    def component(self, group: str) -> Any:
        """A new component of the run, in its initial state; a generator that decides has done so."""
        seed, device = seed_of(self.config.seed, group), self.session.device
        component = self.settings.components[group].build(self.task.spec, seed=seed, device=device)
        if isinstance(component, DecidingGenerator):
            component.decide(self._circumstances())
        return component

    def _resume(self, state: dict[str, Any]) -> None:
        self._check_identity(state, self.folder)
        try:
            self.loop.load_state_dict(state)
            self.loop.reopen()
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.folder} can't be continued: {error}") from error

    def _start_from(self, folder: Path) -> None:
        """Load the learner of a pretraining run with the same learner settings and the same data."""
        saved = open_run(folder, "pretrained")
        self._check_identity(saved.state, folder)
        theirs = saved.settings.components["learner"]
        if theirs != self.settings.components["learner"]:
            raise InputError(
                f"setting 'pretrained': {folder} has learner {theirs.config}, expected this run's settings"
            )
        self.loop.learner.load_state_dict(saved.state["learner"])
        self.loop.updates = saved.state["updates"]

    def _check_identity(self, state: dict[str, Any], folder: Path) -> None:
        """Raise InputError if data or reward scale differ: a learner's values are valid only for its own."""
        for name, value in self.loop.identity.items():
            if state["identity"][name] != value:
                raise InputError(f"{folder} was made with another {name} than {self.task.dataset.name} has now")

    def report(self) -> tuple[dict[str, Any], dict[str, Path]]:
        """Write summary, learning curve and generator; returns the summary and the paths of all output files."""
        loop, folder, refresher = self.loop, self.folder, self.loop.refresher
        run = {
            "env_steps": loop.env_steps,
            "updates": loop.updates,
            "refreshes": refresher.count,
            "refused_refreshes": refresher.refused,
            "generated_rows": refresher.rows,
            "seed": self.config.seed,
            "processor": processor(),
            **self.session.choices(),
            "dataset_return": self.task.dataset.mean_return,
            "seconds": {**loop.seconds, "total": sum(loop.seconds.values())},
        }
        summary = summarize(loop.evaluations, run)
        save_summary(summary, folder / SUMMARY)
        names = [self.settings.components[group].target.__name__ for group in ("generator", "learner")]
        title = f"{self.task.dataset.name}: {' + '.join(names)}"
        save_curve(loop.evaluations, title, folder / "curve.png")
        paths = {"settings": folder / SETTINGS, "metrics": folder / "metrics.jsonl", "summary": folder / SUMMARY}
        paths |= {"learning curve": folder / "curve.png", "checkpoint": folder / CHECKPOINTS}
        generator: Any = refresher.generator
        if refresher.count and hasattr(generator, "save_pretrained"):
            provenance = self.task.dataset.provenance | {"environment": asdict(self.task.environment)}
            generator.save_pretrained(folder / "generator", provenance)
            paths["generator"] = folder / "generator"
        return summary, paths


def run_name(settings: Settings) -> str:
    """Default name of a run's folder, without the seed: dataset, generator, learner."""
    components = settings.components
    dataset = Path(components["task"].config.dataset or "scratch")
    dataset = dataset.stem if dataset.suffix else "-".join(dataset.parts[-2:])
    return "_".join([dataset, *(components[group].target.__name__.lower() for group in ("generator", "learner"))])
