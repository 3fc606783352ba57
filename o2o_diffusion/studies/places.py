"""Where a study reads and writes."""

from dataclasses import dataclass
from pathlib import Path

from o2o_diffusion.studies.rows import append_row, row_of_cell
from o2o_diffusion.studies.study import Cell, with_data
from o2o_diffusion.training.report import NUMBERS


@dataclass(frozen=True)
class Places:
    """Folder of the datasets, folder of the run folders, and the file of rows."""

    data: Path | None
    runs: Path
    rows: Path

    def folder(self, cell: Cell) -> Path:
        """Run folder of a cell, a different one for other settings or numbers."""
        return self.runs / f"{cell.name}_{cell.key}_{NUMBERS}"

    def arguments(self, cell: Cell) -> list[str]:
        """Command line of a new run of a cell."""
        start = [f"pretrained={self.folder(cell.pretraining)}"] if cell.pretraining else []
        own = ["threads=1", "logger.progress=false", f"output={self.folder(cell)}"]
        return [*with_data(cell.settings, self.data), *start, *own]

    def append(self, cell: Cell) -> None:
        """Append the row of a cell's finished run; shared offline runs have none."""
        if cell.script == "finetune.py":
            append_row(self.rows, row_of_cell(cell, self.folder(cell)))
