"""From settings to a run in its folder: build everything once, show the plan, run, and write what it found."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from o2o_diffusion.checkpoint import load_checkpoint
from o2o_diffusion.config import CONFIGS, PACKAGE, Settings, compose
from o2o_diffusion.data.replay import Replay
from o2o_diffusion.distributed import num_processes
from o2o_diffusion.errors import InputError
from o2o_diffusion.estimate import expected_seconds
from o2o_diffusion.evaluation import Evaluator
from o2o_diffusion.finetuning import Finetuning, generated_counts
from o2o_diffusion.folders import SETTINGS, SUMMARY, new_folder, newest_unfinished
from o2o_diffusion.hardware import choose_matmul, set_threads
from o2o_diffusion.interaction import Interaction
from o2o_diffusion.interruption import Interruption
from o2o_diffusion.logger import Logger
from o2o_diffusion.protocols import Generator
from o2o_diffusion.report import save_curve, save_summary, show_plan, show_summary, summarize
from o2o_diffusion.tasks import Task
from o2o_diffusion.types import Source

GROUPS = ("task", "generator", "sampler", "learner", "logger")
SEEDS = ("learner", "generator", "sampler", "environment", "evaluation")


class Run:
    """A run in its folder, new or resumed."""

    def __init__(self, settings: Settings, folder: Path | None = None):
        self.settings, self.config = settings, settings.run
        Logger.check(settings.components["logger"].config)
        tracker = settings.components["logger"].config.tracker
        resumed = load_checkpoint(folder / "checkpoints") if folder else None
        self.folder = folder or new_folder(self.config.output, self._name())
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), log_with=tracker, project_dir=str(self.folder)
        )
        self.threads = set_threads(self.config.threads)
        self.matmul = choose_matmul()
        with self.accelerator.main_process_first():
            self.task: Task = settings.components["task"].build()
        batch_size, processes = settings.components["learner"].config.batch_size, num_processes()
        if batch_size % processes:
            raise InputError(f"setting 'learner.batch_size': {batch_size} can't be divided among {processes} processes")
        self.loop = self._loop()
        if resumed is not None:
            self._resume(resumed)
        elif self.config.pretrained is not None:
            self._start_from(Path(self.config.pretrained))

    @classmethod
    def resume(cls, where: str) -> "Run":
        """The interrupted run in the folder `where`, or with "auto" the newest one under runs/."""
        folder = newest_unfinished() if where == "auto" else Path(where)
        if not (folder / SETTINGS).is_file():
            raise InputError(f"--resume {folder}: no {SETTINGS} there; expected the folder of a run")
        return cls(compose(folder / SETTINGS, Finetuning.Config, GROUPS), folder)

    def execute(self) -> int:
        """Show the plan, run to the end or an interruption, write and show the result; returns the exit code."""
        main = self.accelerator.is_main_process
        self.loop.interrupted = Interruption()
        if main:
            self.settings.save(self.folder / SETTINGS)
            show_plan(self.plan())
        start = time.perf_counter()
        finished = self.loop.run()
        self.loop.seconds["total"] = self.loop.seconds.get("total", 0.0) + time.perf_counter() - start
        self.loop.logger.close()
        if main and finished:
            self._report()
        elif main:
            print(f"interrupted; continue with: --resume {self.folder}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return 0 if finished else 130

    def plan(self) -> dict[str, str]:
        """What is going to be done, for the header."""
        loop, components = self.loop, self.settings.components
        steps = " + ".join(
            f"{phase.updates:,} updates ({phase.name})"
            if phase.updates
            else f"{phase.env_steps:,} steps ({phase.name})"
            for phase in loop.phases
        )
        pools = ", ".join(
            f"{len(pool):,} {source.name.lower()}" for source, pool in loop.replay.pools.items() if len(pool)
        )
        return {
            "task": self.task.description,
            "score": self.task.scores.source if self.task.scores else "raw return or success rate",
            "rows": pools or "none yet",
            "reward": f"{self.task.transform.scale:.4g} * r + {self.task.transform.bias:.4g} for the learner",
            "learner": components["learner"].target.__name__,
            "generator": components["generator"].target.__name__,
            "plan": steps,
            "processes": f"{num_processes()} on {self.accelerator.device.type}, {self.threads} threads each,"
            f" precision {self.accelerator.mixed_precision}, matrix products '{self.matmul}'",
            "expected": self._expected(),
            "configurations": f"{CONFIGS} (package {PACKAGE})",
            "output": str(self.folder),
        }

    def _name(self) -> str:
        """What a run's folder is called: dataset, generator, learner, seed."""
        components = self.settings.components
        dataset = Path(components["task"].config.dataset or "scratch").name
        names = [components[group].target.__name__.lower() for group in ("generator", "learner")]
        return "_".join([dataset, *names, f"seed{self.config.seed}"])

    def _expected(self) -> str:
        parts = (self._component(group) for group in ("learner", "generator", "sampler"))
        minutes = expected_seconds(self.loop, *parts) / 60
        return f"about {minutes:.0f} minutes" if minutes > 1 else "about a minute"

    def _loop(self) -> Finetuning:
        config, components, task = self.config, self.settings.components, self.task
        device = self.accelerator.device
        generator: Generator = self._component("generator")
        capacities = {Source.OFFLINE: sum(len(episode) for episode in task.dataset.episodes)}
        capacities[Source.ONLINE] = max(1, min(config.online_capacity, config.online_steps))
        replay = Replay(
            task.dataset.spec,
            capacities | generated_counts(generator),
            transform=task.transform,
            discount=config.discount,
            failure_reward=task.config.failure_reward,
            device=device,
        )
        replay.load(task.dataset.episodes)
        main = self.accelerator.is_main_process
        environment = task.make_environment() if main else None
        evaluator = self._evaluator() if main else None
        learner, sampler = self._component("learner"), self._component("sampler")
        self.folder.mkdir(parents=True, exist_ok=True)  # only now: nothing is left behind by what is refused above
        return Finetuning(
            config,
            learner=learner,
            make_learner=lambda: self._component("learner"),
            generator=generator,
            sampler=sampler,
            replay=replay,
            interaction=Interaction(environment, task.dataset.spec, seed=self._seed("environment"), device=device),
            evaluator=evaluator,
            logger=Logger(components["logger"].config, self.folder, self.accelerator, self.settings.plain),
            folder=self.folder,
            autocast=self.accelerator.autocast,
            facts={"dataset": task.dataset.fingerprint, "matmul": self.matmul, "threads": self.threads},
        )

    def _evaluator(self) -> Evaluator:
        return Evaluator(
            self.task.environment,
            self.task.dataset.observation_keys,
            episodes=self.config.final_eval_episodes,
            seed=self._seed("evaluation"),
            references=self.task.scores,
            device=self.accelerator.device,
        )

    def _component(self, group: str) -> Any:
        seed, device = self._seed(group), self.accelerator.device
        return self.settings.components[group].build(self.task.dataset.spec, seed=seed, device=device)

    def _seed(self, part: str) -> int:
        """Parts of a run have seeds of their own, so that one more draw in one does not change the others."""
        return int(np.random.SeedSequence([self.config.seed, SEEDS.index(part)]).generate_state(1)[0] % 2**31)

    def _resume(self, state: dict[str, Any]) -> None:
        self._check_dataset(state, self.folder)
        self.loop.load_state_dict(state)
        self.loop.facts = state["facts"]
        torch.set_float32_matmul_precision(state["facts"]["matmul"])
        torch.set_num_threads(state["facts"]["threads"])

    def _start_from(self, folder: Path) -> None:
        """Take over the learner of a pretraining run made with the same learner settings on the same data."""
        state = load_checkpoint(folder / "checkpoints")
        self._check_dataset(state, folder)
        theirs = compose(folder / SETTINGS, Finetuning.Config, GROUPS).components["learner"]
        if theirs != self.settings.components["learner"]:
            raise InputError(
                f"setting 'pretrained': {folder} has learner {theirs.config}, expected this run's settings"
            )
        self.loop.learner.load_state_dict(state["learner"])
        self.loop.updates = state["updates"]

    def _check_dataset(self, state: dict[str, Any], folder: Path) -> None:
        if state["facts"]["dataset"] != self.task.dataset.fingerprint:
            raise InputError(f"{folder}: the dataset {self.task.dataset.name} is not the one this run was made with")

    def _report(self) -> None:
        loop, folder = self.loop, self.folder
        run = {
            "env_steps": loop.env_steps,
            "updates": loop.updates,
            "refreshes": loop.refreshes,
            "generated_rows": loop.generated_rows,
            "seed": self.config.seed,
            "seconds": loop.seconds,
        }
        summary = summarize(loop.evaluations, run)
        save_summary(summary, folder / SUMMARY)
        names = [self.settings.components[group].target.__name__ for group in ("generator", "learner")]
        title = f"{self.task.dataset.name}: {' + '.join(names)}"
        save_curve(loop.evaluations, title, folder / "curve.png")
        paths = {"settings": folder / SETTINGS, "metrics": folder / "metrics.jsonl", "summary": folder / SUMMARY}
        paths |= {"learning curve": folder / "curve.png", "checkpoint": folder / "checkpoints"}
        save_generator = getattr(loop.generator, "save_pretrained", None)
        if save_generator is not None and loop.refreshes:
            save_generator(folder / "generator")
            paths["generator"] = folder / "generator"
        show_summary(summary, paths)
