"""Measure the quality of a saved generator's rows: a table, report.json and page.png.

Every metric is shown with its floor, its value for other real rows of the same label, and, if there is an online
dataset, with its ceiling, its value for real rows of the other label.
"""

from pathlib import Path

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.errors import InputError
from o2o_diffusion.quality.table import show_report
from o2o_diffusion.storage import check_writable
from o2o_diffusion.training.evaluate_generator import PAGE, REPORT, Config, evaluate_saved
from o2o_diffusion.training.folders import open_run
from o2o_diffusion.training.session import set_matmul, set_threads


def evaluate_generator(argv: list[str]) -> int:
    """Load the generator, compare its rows with real rows, and write and show the report."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config = settings.run
    if None in (config.generator, config.dataset, config.output):
        raise InputError("give generator=<a saved generator>, dataset=<what it was trained on> and output=<folder>")
    check_writable(Path(config.output))
    set_threads(config.threads)
    set_matmul("auto")
    offline = load_dataset(config.dataset)
    agent = open_run(Path(config.policy), "policy").learner(offline.spec) if config.policy else None
    show_report(evaluate_saved(config, offline, agent))
    for name in (REPORT, PAGE):
        print(Path(config.output) / name)
    return 0


if __name__ == "__main__":
    main(evaluate_generator)
