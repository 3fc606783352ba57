"""Train a generator on datasets alone: plan, checkpoint, resume, evaluate, and save it as one folder.

During training, settings and checkpoints are in `<output>.training`; the folder `<output>` is created at the end.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.loading import check_rows, constant_columns, load_rows, make_replay
from o2o_diffusion.data.tables import check_columns
from o2o_diffusion.distributed import rank
from o2o_diffusion.environments.tasks import Task
from o2o_diffusion.errors import InputError
from o2o_diffusion.progress import progress_bar
from o2o_diffusion.protocols import Generator
from o2o_diffusion.quality.gate import judge
from o2o_diffusion.replay import Replay
from o2o_diffusion.settings import Settings
from o2o_diffusion.storage import lock
from o2o_diffusion.training.checkpoint import name_of, newest_whole, save_checkpoint
from o2o_diffusion.training.faults import reported
from o2o_diffusion.training.folders import (
    CHECKPOINTS,
    find_training,
    new_output,
    output_of,
    reopen,
    save_settings,
    training_of,
)
from o2o_diffusion.training.guard import SkippedUpdates, check_finite
from o2o_diffusion.training.plan import show_minutes, show_pools
from o2o_diffusion.training.record import Record
from o2o_diffusion.training.refresher import Refresher
from o2o_diffusion.training.report import show_plan
from o2o_diffusion.training.session import Session
from o2o_diffusion.types import GENERATED

GROUPS = ("task", "generator")
LOG_INTERVAL = 50
"""Updates between reads of the loss; reading it from an accelerator forces a synchronization."""
TRIAL_UPDATES = 10


class GeneratorTraining:
    """One refresh of a generator on a dataset and, optionally, a second dataset with the online label."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the training itself; the number of updates is a setting of the generator."""

        seed: Annotated[int, "random seed of the training", Ge(0)] = 0
        online_dataset: Annotated[str | None, "dataset with the online label; null: none"] = None
        output: Annotated[str | None, "folder to save the generator in; null: generators/<dataset>_<generator>"] = None
        checkpoint_interval: Annotated[int, "updates between checkpoints", Ge(1)] = 2_000
        quality_rows: Annotated[
            int, "generated rows per label to judge at the end by held-out rows; 0: none", Ge(0)
        ] = 2_000
        max_skipped_updates: Annotated[int, "updates in a row that are not finite before the training stops", Ge(1)] = (
            10
        )
        threads: Annotated[int, "threads per process; 0: cores divided by processes", Ge(0)] = 0
        matmul: Annotated[str, "float32 matmul precision: highest, medium (oneDNN), or auto: medium if exact"] = "auto"

        def __post_init__(self):
            if 0 != self.quality_rows < 100:
                raise ValueError(f"'quality_rows' is {self.quality_rows}, expected 0 or at least 100")

    def __init__(
        self,
        settings: Settings,
        folder: Path | None = None,
        state: dict[str, Any] | None = None,
        record: Record | None = None,
    ):
        """Start a new training, or restore the interrupted one in `folder` from its saved `state` and `record`."""
        self.config, self.is_new = settings.run, state is None
        self.session = Session(self.config.threads, self.config.matmul)
        self.settings = settings.with_run(**self.session.choices())
        self.record = record or Record(self.settings.to_yaml())
        with self.session.accelerator.main_process_first():
            name = str(settings.components["task"].config.dataset or "the task")
            check_columns(name)
            self.task: Task = settings.components["task"].build()
            self.online = load_rows(self.config.online_dataset) if self.config.online_dataset else None
        check_rows(name, self.task.dataset)
        self.output = output_of(folder) if folder else new_output(self.config.output, self._name())
        self.folder = folder or training_of(self.output)
        self.replay = make_replay(self.task.dataset, self.online, self.session.device)
        self.agent, self.refresher = NoAgent(), Refresher(self._build())
        self.skipped = SkippedUpdates(self.config.max_skipped_updates)
        self.total = self.generator.next_refresh(self.replay).updates
        if self.total == 0 or not hasattr(self.generator, "save_pretrained"):
            raise InputError(f"generator {type(self.generator).__name__} has nothing to train")
        if state is not None:
            self._continue_from(state)

    @classmethod
    def resume(cls, where: str, overrides: Sequence[str] = ()) -> "GeneratorTraining":
        """Restore the interrupted training of the generator `where`, or the newest under generators/ if "auto".

        `overrides` of its settings are recorded in the next checkpoint.
        """
        folder = find_training(where)
        settings, record, state = reopen(folder, cls.Config, GROUPS, overrides)
        return cls(settings, folder, state, record)

    @property
    def generator(self) -> Any:
        """The generator in training."""
        return self.refresher.generator

    @property
    def updates(self) -> int:
        """Number of updates done."""
        return self.refresher.total - self.refresher.updates_due

    def execute(self) -> int:
        """Show the plan, train, evaluate, save; returns the exit code, 130 or 143 if interrupted."""
        self.session.listen()
        held = lock(self.output) if self.session.is_main else contextlib.nullcontext()
        with held, reported(self.folder, self.folder / CHECKPOINTS, self.output):
            plan = self.plan()  # on every process: the updates it times are collective
            self.begin()
            if self.session.is_main:
                show_plan(plan)
                if constant := constant_columns(self.replay):
                    print(f"warning: constant columns, repeated in new rows: {', '.join(constant)}", file=sys.stderr)
            finished = self.train()
            if finished:
                self.finish()
        if self.session.is_main and not finished:
            print(f"interrupted after {self.updates:,} updates; continue with: --resume {self.output}")
        self.session.close()
        return self.session.exit_code(finished=finished)

    def begin(self) -> None:
        """Write the settings and the first checkpoint of a new training, so that it can be continued from now on.

        Raises InputError if another process has trained the generator since this one was made.
        """
        if not self.session.is_main:
            return
        last = newest_whole(self.folder / CHECKPOINTS)
        if last != (None if self.is_new else self.folder / CHECKPOINTS / name_of(self.updates)):
            raise InputError(f"another process has trained {self.output} meanwhile; start again")
        if self.is_new:
            save_settings(self.record.text, self.folder)
            self.save()

    def train(self) -> bool:
        """Run the remaining updates; returns False if interrupted. Saves the last state in both cases."""
        refresher, name = self.refresher, type(self.generator).__name__
        if refresher.total == 0:
            refresher.begin(self.replay, self.agent, 0)
        with progress_bar(f"train {name}", self.total, initial=self.updates, disable=not self.session.is_main) as bar:
            while refresher.updates_due:
                if self.session.stop(self.updates):
                    self.save()
                    return False
                with self.session.autocast():
                    metrics = refresher.update(self.replay, self.agent)
                self.skipped.add(metrics)
                bar.update()
                save = self.updates % self.config.checkpoint_interval == 0 or not refresher.updates_due
                if save or self.updates % LOG_INTERVAL == 0:
                    if skipped := self.skipped.check("training"):
                        print(f"warning: {skipped:,} updates were not finite and were skipped", file=sys.stderr)
                    losses = {key: float(value) for key, value in metrics.items() if key.endswith("loss")}
                    bar.set_postfix({key: f"{value:.3f}" for key, value in losses.items()}, refresh=False)
                if save:
                    self.save()
        return True

    def finish(self) -> None:
        """Evaluate the generator, save it, print its folder, and delete the checkpoints."""
        quality = measure(self.generator, self.replay, self.config.quality_rows)
        if not self.session.is_main:
            return
        self.generator.save_pretrained(self.output, self.provenance() | {"quality": quality})
        shutil.rmtree(self.folder)
        if quality:
            print(f"rows, judged by held-out rows: {quality['verdict']}")
        print(f"saved to {self.output}")

    def provenance(self) -> dict[str, Any]:
        """Datasets, environment, updates and seed of the generator, for its folder and model card."""
        return self.task.dataset.provenance | {
            "online_dataset": self.online.name if self.online else None,
            "online_dataset_sha256": self.online.fingerprint if self.online else None,
            "environment": asdict(self.task.environment),
            "updates": self.total,
            "seed": self.config.seed,
        }

    def plan(self) -> dict[str, str]:
        """Summary of the training, for the header."""
        done = f", {self.updates:,} of them done" if self.updates else ""
        return {
            "task": self.task.description,
            "rows": show_pools(self.replay),
            "generator": type(self.generator).__name__,
            "updates": f"{self.total:,}{done}",
            **self.session.plan(),
            "expected": show_minutes(self._expected_seconds()),
            "output": str(self.output),
        }

    def save(self) -> None:
        """Write a checkpoint; a training resumed from it reaches the same weights."""
        if self.session.is_main:
            check_finite(generator=self.generator)
            state = {"refresher": self.refresher.state_dict(), "data": self._data(), "settings": self.record.state()}
            save_checkpoint(self.folder / CHECKPOINTS, self.updates, state, settings=self.record.digest)

    def _continue_from(self, state: dict[str, Any]) -> None:
        if state["data"] != self._data():
            raise InputError(f"{self.folder} was made with other data than {self.task.dataset.name} has now")
        try:
            self.refresher.load_state_dict(state["refresher"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{self.folder} can't be continued: {error}") from error

    def _name(self) -> str:
        """Default name of the generator folder: dataset and generator."""
        generator = self.settings.components["generator"].target.__name__.lower()
        return f"{Path(self.task.dataset.name).name}_{generator}"

    def _build(self) -> Any:
        """Build the generator from its settings."""
        component = self.settings.components["generator"]
        return component.build(self.task.spec, seed=self.config.seed, device=self.session.device)

    def _data(self) -> list[str]:
        return [dataset.fingerprint for dataset in (self.task.dataset, self.online) if dataset]

    def _expected_seconds(self) -> float:
        """Expected time of the remaining updates, measured on a throwaway generator."""
        trial, start = Refresher(self._build()), 0.0
        trial.begin(self.replay, self.agent, 0)
        for number in range(TRIAL_UPDATES + 1):
            trial.update(self.replay, self.agent)
            start = start if number else time.perf_counter()  # the first update is slow
        return (self.total - self.updates) * (time.perf_counter() - start) / TRIAL_UPDATES


def measure(generator: Generator, replay: Replay, num_rows: int) -> dict[str, Any] | None:
    """The gate's verdict on `num_rows` generated rows of each label with real rows, by real rows that were held out.

    Returns {"rows": number, "verdict": words, "numbers": {label_name: number}} on the main process, None on the others.
    All processes must call it, because sampling is collective.
    """
    counts = {source: num_rows for source in GENERATED if num_rows and len(replay.pools[source.real])}
    options: dict[str, Any] = {"replay": replay.part(held_out=False), "agent": NoAgent()}
    batches = {source: generator.sample(count, source=source, **options) for source, count in counts.items()}
    if not batches:
        return None
    limits = generator.next_refresh(replay).gate
    verdict = judge(batches, counts, replay, replace(limits, rows=num_rows))
    numbers = {name: round(value, 4) for name, value in verdict.metrics.items()}
    return {"rows": num_rows, "verdict": verdict.summary, "numbers": numbers} if rank() == 0 else None
