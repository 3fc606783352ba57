"""Measure how good the rows of a saved generator are: a table, report.json and page.png.

Every number stands beside its floor, the same of other real rows of the label, and where there is an online dataset
beside its ceiling, the same of real rows of the other label.
"""

from pathlib import Path

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.errors import InputError
from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality.table import show_report
from o2o_diffusion.settings import compose
from o2o_diffusion.storage import check_writable
from o2o_diffusion.training.checkpoint import load_checkpoint
from o2o_diffusion.training.evaluate_generator import PAGE, REPORT, Config, evaluate_saved
from o2o_diffusion.training.finetune import GROUPS
from o2o_diffusion.training.folders import SETTINGS
from o2o_diffusion.training.loop import Finetuning
from o2o_diffusion.training.session import set_matmul, set_threads
from o2o_diffusion.types import TransitionSpec


def evaluate_generator(argv: list[str]) -> int:
    """Load, draw, compare, write, show."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if None in (config.generator, config.dataset, config.output):
        raise InputError("give generator=<a saved generator>, dataset=<what it was trained on> and output=<folder>")
    check_writable(Path(config.output))
    set_threads(config.threads)
    set_matmul("auto")
    offline = load_dataset(config.dataset)
    agent = load_policy(Path(config.policy), offline.spec) if config.policy else None
    show_report(evaluate_saved(config, offline, agent))
    for name in (REPORT, PAGE):
        print(Path(config.output) / name)
    return 0


def load_policy(run: Path, spec: TransitionSpec) -> Agent:
    """The learner of a run's newest checkpoint; raises InputError where there is none, or it has other columns."""
    if not (run / SETTINGS).is_file():
        raise InputError(f"policy={run}: no {SETTINGS} there; expected the folder of a run")
    learner = compose(run / SETTINGS, Finetuning.Config, GROUPS).components["learner"].build(spec, seed=0)
    try:
        learner.load_state_dict(load_checkpoint(run / "checkpoints")["learner"])
    except RuntimeError as error:
        raise InputError(f"policy={run} was trained with other observations or actions than {spec}") from error
    return learner


if __name__ == "__main__":
    main(evaluate_generator)
