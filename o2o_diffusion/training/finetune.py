"""From settings to a run in its folder: build everything once, show the plan, run, and write what it found."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from o2o_diffusion.distributed import num_processes
from o2o_diffusion.environments.collector import Interaction
from o2o_diffusion.environments.evaluation import Evaluator
from o2o_diffusion.environments.tasks import Task
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Generator
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import CONFIGS, PACKAGE, Settings, compose
from o2o_diffusion.training.checkpoint import load_checkpoint
from o2o_diffusion.training.folders import SETTINGS, SUMMARY, new_folder, newest_unfinished
from o2o_diffusion.training.logger import Logger
from o2o_diffusion.training.loop import Finetuning
from o2o_diffusion.training.plan import expected_seconds, num_refreshes
from o2o_diffusion.training.report import save_curve, save_summary, show_plan, show_summary, summarize
from o2o_diffusion.training.session import Interruption, processor, set_matmul, set_threads
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
        if self.accelerator.mixed_precision not in ("no", "bf16"):
            raise InputError(f"mixed precision '{self.accelerator.mixed_precision}' is not supported; use bf16 or no")
        self.threads, self.matmul = set_threads(self.config.threads), set_matmul(self.config.matmul)
        with self.accelerator.main_process_first():
            self.task: Task = settings.components["task"].build()
        batch_size, processes = settings.components["learner"].config.batch_size, num_processes()
        if batch_size % processes:
            raise InputError(f"setting 'learner.batch_size': {batch_size} can't be divided among {processes} processes")
        self.loop = self._loop()
        self._check_phases()
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
        plan = self.plan()  # on every process, because it times updates, in which all of them take part
        if main:
            settings = self.settings.with_run(threads=self.threads, matmul=self.matmul)  # as this machine chose them
            settings.save(self.folder / SETTINGS)
            show_plan(plan)
        finished = self.loop.run()
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
            "generator": f"{components['generator'].target.__name__}, {num_refreshes(loop)} refreshes",
            "plan": steps,
            "processes": f"{num_processes()} on {self.accelerator.device.type}, {self.threads} threads each,"
            f" precision {self.accelerator.mixed_precision}, matrix products '{self.matmul}'",
            "processor": processor(),
            "expected": self._expected(),
            "configurations": f"{CONFIGS} (package {PACKAGE})",
            "output": str(self.folder),
        }

    def _check_phases(self) -> None:
        name, phases = self.settings.components["learner"].target.__name__, self.loop.phases
        if not phases:
            raise InputError(f"there is nothing to do for {name}: pretrain_updates and online_steps leave no phase")
        if phases[0].updates and not self.task.dataset.episodes:
            raise InputError(
                f"{phases[0].updates} updates before the first step need a dataset; set pretrain_updates=0"
            )

    def _name(self) -> str:
        """What a run's folder is called: dataset, generator, learner, seed."""
        components = self.settings.components
        dataset = Path(components["task"].config.dataset or "scratch")
        dataset = dataset.stem if dataset.suffix else "-".join(dataset.parts[-2:])
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
        capacities = {Source.OFFLINE: task.dataset.num_transitions}
        capacities[Source.ONLINE] = max(1, min(config.online_capacity, config.online_steps))
        replay = Replay(
            task.dataset.spec,
            capacities | generator.generated.counts(generator.num_samples),
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
            facts={
                "dataset": task.dataset.fingerprint,
                "reward": [task.transform.scale, task.transform.bias, task.config.failure_reward],
            },
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
        self._check_data(state, self.folder)
        try:
            self.loop.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.folder} can't be continued: {error}") from error

    def _start_from(self, folder: Path) -> None:
        """Take over the learner of a pretraining run made with the same learner settings on the same data."""
        state = load_checkpoint(folder / "checkpoints")
        self._check_data(state, folder)
        theirs = compose(folder / SETTINGS, Finetuning.Config, GROUPS).components["learner"]
        if theirs != self.settings.components["learner"]:
            raise InputError(
                f"setting 'pretrained': {folder} has learner {theirs.config}, expected this run's settings"
            )
        self.loop.learner.load_state_dict(state["learner"])
        self.loop.updates = state["updates"]

    def _check_data(self, state: dict[str, Any], folder: Path) -> None:
        """A learner's values hold for its data and its scale of rewards only."""
        for fact in ("dataset", "reward"):
            if state["facts"][fact] != self.loop.facts[fact]:
                raise InputError(f"{folder} was made with another {fact} than {self.task.dataset.name} has now")

    def _report(self) -> None:
        loop, folder = self.loop, self.folder
        run = {
            "env_steps": loop.env_steps,
            "updates": loop.updates,
            "refreshes": loop.refresher.count,
            "refused_refreshes": loop.refresher.refused,
            "generated_rows": loop.refresher.rows,
            "seed": self.config.seed,
            "processor": processor(),
            "threads": self.threads,
            "matmul": self.matmul,
            "dataset_return": self.task.dataset.mean_return,
            "seconds": {**loop.seconds, "total": sum(loop.seconds.values())},
        }
        summary = summarize(loop.evaluations, run)
        save_summary(summary, folder / SUMMARY)
        names = [self.settings.components[group].target.__name__ for group in ("generator", "learner")]
        title = f"{self.task.dataset.name}: {' + '.join(names)}"
        save_curve(loop.evaluations, title, folder / "curve.png")
        paths = {"settings": folder / SETTINGS, "metrics": folder / "metrics.jsonl", "summary": folder / SUMMARY}
        paths |= {"learning curve": folder / "curve.png", "checkpoint": folder / "checkpoints"}
        generator: Any = loop.generator
        if loop.refresher.count and hasattr(generator, "save_pretrained"):
            generator.facts = self.task.dataset.facts | {"environment": asdict(self.task.environment)}
            generator.save_pretrained(folder / "generator")
            paths["generator"] = folder / "generator"
        show_summary(summary, paths)
