"""Where a study reads and writes."""

from dataclasses import dataclass
from pathlib import Path

from o2o_diffusion.studies.rows import append_row, row_of_cell
from o2o_diffusion.studies.study import Cell, with_data
from o2o_diffusion.training.folders import CHECKPOINTS, SUMMARY, seed_folder
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

    def folders(self, cell: Cell) -> list[Path]:
        """The folder of each seed's run."""
        folder = self.folder(cell)
        if cell.num_seeds == 1:
            return [folder]
        return [seed_folder(folder, seed) for seed in range(cell.seed, cell.seed + cell.num_seeds)]

    def is_finished(self, cell: Cell) -> bool:
        """Whether the runs of all seeds have finished."""
        return all((folder / SUMMARY).exists() for folder in self.folders(cell))

    def is_begun(self, cell: Cell) -> bool:
        """Whether the runs of all seeds can be continued."""
        return all(any(folder.glob(f"{CHECKPOINTS}/step_*")) for folder in self.folders(cell))

    def arguments(self, cell: Cell) -> list[str]:
        """Command line of a new run of a cell."""
        start = [f"pretrained={self.folder(cell.pretraining)}"] if cell.pretraining else []
        start += [f"num_seeds={cell.num_seeds}"] if cell.num_seeds > 1 else []
        own = ["threads=1", "logger.progress=false", f"output={self.folder(cell)}"]
        return [*with_data(cell.settings, self.data), *start, *own]

    def append(self, cell: Cell) -> None:
        """Append the rows of a cell's finished runs; shared offline runs have none."""
        for folder in self.folders(cell) if cell.script == "finetune.py" else ():
            append_row(self.rows, row_of_cell(cell, folder))
