"""Compare finished runs: tables with intervals and figures, by the component of one group."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from o2o_diffusion.command_line import command_line, main
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.storage import check_writable
from o2o_diffusion.studies.folders import finished, rows_of_runs
from o2o_diffusion.studies.page import save_page
from o2o_diffusion.studies.results import Results
from o2o_diffusion.training.folders import GROUPS


@dataclass(frozen=True)
class Config:
    """The runs, what is compared, and where the results go."""

    runs: Annotated[str, "folder with run folders, at any depth"] = "runs"
    compare: Annotated[str, "group whose components are compared: generator, learner, sampler or task"] = "generator"
    baseline: Annotated[str, "component to which differences are taken"] = "none"
    output: Annotated[str, "Markdown file; the figures lie beside it"] = "results.md"


def results(argv: list[str]) -> int:
    """Write the tables and figures."""
    settings, _ = command_line(__doc__, None, Config, (), argv)
    config, page = settings.run, Path(settings.run.output)
    if config.compare not in GROUPS:
        raise InputError(f"compare={config.compare}: expected one of {', '.join(GROUPS)}")
    check_writable(page.parent)
    found = Results(rows_of_runs(finished(Path(config.runs)), config.compare), config.compare, config.baseline)
    if config.baseline not in found.variants:
        known = ", ".join(found.variants)
        raise InputError(
            f"baseline={config.baseline}: expected one of {known}{nearest(config.baseline, found.variants)}"
        )
    save_page(found, "Results", f"python scripts/results.py {' '.join(argv)}".strip(), page)
    print(page)
    return 0


if __name__ == "__main__":
    main(results)
