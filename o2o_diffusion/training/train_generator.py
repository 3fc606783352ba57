"""A generator's training on datasets alone: planned, checkpointed, resumed, measured, and saved as one folder.

While it is trained, settings and checkpoints lie in `<output>.training`; the folder `<output>` appears when it is done.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.loading import check_rows, constant_columns, load_rows, make_replay
from o2o_diffusion.data.tables import check_columns
from o2o_diffusion.distributed import agree, num_processes, rank
from o2o_diffusion.errors import InputError
from o2o_diffusion.quality.gate import REAL, aucs
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import Settings, compose
from o2o_diffusion.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from o2o_diffusion.training.folders import SETTINGS, find_training, new_output, output_of, training_of
from o2o_diffusion.training.report import show_plan
from o2o_diffusion.training.session import Interruption, processor, set_matmul, set_threads
from o2o_diffusion.types import Metrics

GROUPS = ("task", "generator")
LOG_INTERVAL = 50
"""Updates between looks at the loss, because fetching it from an accelerator costs a synchronisation."""
TRIAL_UPDATES = 10


class GeneratorTraining:
    """One refresh of a generator on a dataset, and on a second one whose rows carry the online label."""

    @dataclass(frozen=True)
    class Config:
        """The run's own settings; the number of updates is the generator's."""

        seed: Annotated[int, "decides everything random"] = 0
        online_dataset: Annotated[str | None, "dataset whose rows carry the online label; null: none"] = None
        output: Annotated[str | None, "folder to save the generator in; null: generators/<dataset>_<generator>"] = None
        checkpoint_interval: Annotated[int, "updates between checkpoints"] = 2_000
        quality_rows: Annotated[int, "new rows per label compared with training rows at the end; 0: none"] = 2_000
        threads: Annotated[int, "threads per process; 0: the cores divided by the processes"] = 0
        matmul: Annotated[str, "float32 matrix products: highest, medium (oneDNN), or auto: medium if exact"] = "auto"

        def __post_init__(self):
            if self.checkpoint_interval < 1:
                raise ValueError(f"'checkpoint_interval' is {self.checkpoint_interval}, expected at least 1")
            if 0 != self.quality_rows < 100:
                raise ValueError(f"'quality_rows' is {self.quality_rows}, expected 0 or at least 100")

    def __init__(self, settings: Settings, folder: Path | None = None):
        """New training, or with `folder` the interrupted one whose settings and checkpoints lie there."""
        self.settings, self.config = settings, settings.run
        resumed = load_checkpoint(folder / "checkpoints") if folder else None
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.main = self.accelerator.is_main_process
        if self.accelerator.mixed_precision not in ("no", "bf16"):
            raise InputError(f"mixed precision '{self.accelerator.mixed_precision}' is not supported; use bf16 or no")
        self.threads, self.matmul = set_threads(self.config.threads), set_matmul(self.config.matmul)
        with self.accelerator.main_process_first():
            name = str(settings.components["task"].config.dataset or "the task")
            check_columns(name)
            self.task = settings.components["task"].build()
            self.online = load_rows(self.config.online_dataset) if self.config.online_dataset else None
        check_rows(name, self.task.dataset)
        self.output = output_of(folder) if folder else new_output(self.config.output, self._name())
        self.folder = folder or training_of(self.output)
        self.replay = make_replay(self.task.dataset, self.online, self.accelerator.device)
        self.generator = self._build()
        self.total, self.updates = self.generator.num_updates, 0
        if self.total == 0 or not hasattr(self.generator, "save_pretrained"):
            raise InputError(f"generator {type(self.generator).__name__} has nothing to train")
        if resumed is not None:
            self._continue_from(resumed)

    @classmethod
    def resume(cls, where: str) -> "GeneratorTraining":
        """The training interrupted on its way to the folder `where`, or with "auto" the newest under generators/."""
        folder = find_training(where)
        return cls(compose(folder / SETTINGS, cls.Config, GROUPS), folder)

    def execute(self, interrupted: Callable[[], bool] | None = None) -> int:
        """Show the plan, train, measure, save; returns the exit code, 130 after an interruption.

        `interrupted` is asked between updates; Ctrl-C and SIGTERM where it is not given.
        """
        interrupted = interrupted or Interruption()
        plan = self.plan()  # on every process, because it times updates, in which all of them take part
        try:
            if self.main:
                self.folder.mkdir(parents=True, exist_ok=True)
                settings = self.settings.with_run(threads=self.threads, matmul=self.matmul)
                settings.save(self.folder / SETTINGS)
                show_plan(plan)
                if constant := constant_columns(self.replay):
                    print(f"warning: constant columns, repeated in new rows: {', '.join(constant)}", file=sys.stderr)
            finished = self.train(interrupted)
            if finished:
                self.finish()
        finally:
            if self.main and not checkpoints(self.folder / "checkpoints"):
                shutil.rmtree(self.folder, ignore_errors=True)
        if self.main and not finished:
            print(f"interrupted after {self.updates:,} updates; continue with: --resume {self.output}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return 0 if finished else 130

    def train(self, interrupted: Callable[[], bool]) -> bool:
        """Go on to the last update; returns False when interrupted. The last state is saved either way."""
        agent, name = NoAgent(), type(self.generator).__name__
        if self.updates == 0:
            self.generator.begin_refresh(self.replay, agent)
        with tqdm(desc=f"train {name}", total=self.total, initial=self.updates, disable=not self.main) as bar:
            while self.updates < self.total:
                if self._stop(interrupted):
                    self.save()
                    return False
                with self.accelerator.autocast():
                    metrics = self.generator.update(self.replay, agent)
                self.updates += 1
                bar.update()
                due = self.updates % self.config.checkpoint_interval == 0 or self.updates == self.total
                if due or self.updates % LOG_INTERVAL == 0:
                    bar.set_postfix(self._losses(metrics))
                if due:
                    self.save()
        return True

    def finish(self) -> None:
        """Measure the generator, save it, show where, and forget the checkpoints."""
        quality = measure(self.generator, self.replay, self.config.quality_rows)
        if not self.main:
            return
        self.generator.facts = self.facts() | {"quality": quality}
        self.generator.save_pretrained(self.output)
        shutil.rmtree(self.folder)
        for label, auc in quality["auc"].items() if quality else ():
            print(f"{label} rows: a classifier tells new from training rows with AUC {auc:.3f} (0.5: not at all)")
        print(f"saved to {self.output}")

    def facts(self) -> dict[str, Any]:
        """What the generator is made from, for its folder and model card."""
        return self.task.dataset.facts | {
            "online_dataset": self.online.name if self.online else None,
            "online_dataset_sha256": self.online.fingerprint if self.online else None,
            "environment": asdict(self.task.environment),
            "updates": self.total,
            "seed": self.config.seed,
        }

    def plan(self) -> dict[str, str]:
        """What is going to be done, for the header."""
        pools = [f"{len(pool):,} {source.name.lower()}" for source, pool in self.replay.pools.items() if len(pool)]
        done = f", {self.updates:,} of them done" if self.updates else ""
        return {
            "task": self.task.description,
            "rows": ", ".join(pools),
            "generator": type(self.generator).__name__,
            "updates": f"{self.total:,}{done}",
            "processes": f"{num_processes()} on {self.accelerator.device.type}, {self.threads} threads each,"
            f" precision {self.accelerator.mixed_precision}, matrix products '{self.matmul}'",
            "processor": processor(),
            "expected": self._expected(),
            "output": str(self.output),
        }

    def save(self) -> None:
        """Write a checkpoint from which `resume` continues to the same weights."""
        if self.main:
            state = {"generator": self.generator.state_dict(), "updates": self.updates, "data": self._data()}
            save_checkpoint(self.folder / "checkpoints", self.updates, state)

    def _continue_from(self, state: dict[str, Any]) -> None:
        if state["data"] != self._data():
            raise InputError(f"{self.folder} was made with other data than {self.task.dataset.name} has now")
        try:
            self.generator.load_state_dict(state["generator"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.folder} can't be continued: {error}") from error
        self.updates = state["updates"]

    def _name(self) -> str:
        """What a generator's folder is called: dataset and generator."""
        generator = self.settings.components["generator"].target.__name__.lower()
        return f"{Path(self.task.dataset.name).name}_{generator}"

    def _build(self) -> Any:
        """The generator as its settings make it."""
        device, component = self.accelerator.device, self.settings.components["generator"]
        return component.build(self.task.dataset.spec, seed=self.config.seed, device=device)

    def _data(self) -> list[str]:
        return [dataset.fingerprint for dataset in (self.task.dataset, self.online) if dataset]

    def _expected(self) -> str:
        """Time of the updates that are left, from some updates of a generator that is thrown away."""
        trial, agent, start = self._build(), NoAgent(), 0.0
        trial.begin_refresh(self.replay, agent)
        for number in range(TRIAL_UPDATES + 1):
            trial.update(self.replay, agent)
            start = start if number else time.perf_counter()  # the first update is slow
        minutes = (self.total - self.updates) * (time.perf_counter() - start) / TRIAL_UPDATES / 60
        return f"about {minutes:.0f} minutes" if minutes > 1 else "less than a minute"

    def _losses(self, metrics: Metrics) -> dict[str, str]:
        """Losses to show; raises InputError when one is not finite, before that is saved."""
        losses = {name: float(value) for name, value in metrics.items() if name.endswith("loss")}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise InputError(f"{name} is {value} after {self.updates:,} updates: the training diverged")
        return {name: f"{value:.3f}" for name, value in losses.items()}

    def _stop(self, interrupted: Callable[[], bool]) -> bool:
        if num_processes() > 1 and self.updates % 64:  # asking the others costs a message
            return False
        return agree(interrupted(), self.accelerator.device)


def measure(generator: Any, replay: Replay, num_rows: int) -> dict[str, Any] | None:
    """Two-sample AUC of `num_rows` new rows against the training rows of their label, for each label that has any.

    Returns {"rows": number, "auc": {label: AUC}}, on the main process only. New rows are drawn on every process,
    because all of them take part.
    """
    drawn = {
        source: generator.sample(num_rows, source=source, replay=replay, agent=NoAgent())
        for source, real in REAL.items()
        if num_rows and len(replay.pools[real])
    }
    if not drawn or rank() != 0:
        return None
    scores = aucs(drawn, replay, num_rows)
    return {"rows": num_rows, "auc": {REAL[source].name.lower(): round(score, 4) for source, score in scores.items()}}
