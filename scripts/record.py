"""Record a task's dataset with the behaviours that ship with the package."""

from dataclasses import dataclass
from typing import Annotated

from o2o_diffusion.config import command_line, main
from o2o_diffusion.data.recording import record
from o2o_diffusion.errors import InputError


@dataclass(frozen=True)
class Config:
    """Under which name to record."""

    dataset: Annotated[str | None, "Minari id under o2o/; null: the task's own"] = None


def record_task(argv: list[str]) -> int:
    """Record what `task.recording` describes, as a Minari dataset that is never written over another."""
    settings, _ = command_line(__doc__, "record.yaml", Config, ("task",), argv)
    task = settings.components["task"].config
    name = settings.run.dataset or task.dataset
    if task.recording is None or name is None:
        raise InputError("this task has no recording; choose one that has (configs/task) or set task.recording")
    print(f"recorded {name} in {record(task.recording, name)}")
    return 0


if __name__ == "__main__":
    main(record_task)
