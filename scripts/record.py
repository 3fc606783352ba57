"""Record a task's dataset with the behaviors included in the package."""

from dataclasses import dataclass

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.environments.recording import record
from o2o_diffusion.errors import InputError


@dataclass(frozen=True)
class Config:
    """No settings of its own: everything is set on the task."""


def record_task(argv: list[str]) -> int:
    """Record `task.recording` as a new Minari dataset, never overwriting an existing one."""
    settings, _ = command_line(__doc__, "record.yaml", Config, ("task",), argv)
    recording = settings.components["task"].config.recording
    if recording is None:
        raise InputError("this task has no recording; choose one that has, or set task.recording")
    print(f"recorded {recording.dataset} in {record(recording)}")
    return 0


if __name__ == "__main__":
    main(record_task)
