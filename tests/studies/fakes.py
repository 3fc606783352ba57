"""Runs that finish at once."""

import json
from pathlib import Path

from o2o_diffusion.training.report import NUMBERS
from o2o_diffusion.training.session import processor


class FakeStart:
    """Starts fake runs that finish at once with the score given by `score(arguments)`; None fails."""

    def __init__(self, score=lambda arguments: 1.0):
        self.score, self.started = score, []

    def __call__(self, script: str, arguments: list[str], log: Path) -> "FakeRun":
        self.started.append((script, *arguments))
        score, folder = self.score(arguments), Path(arguments[-1].partition("=")[2])
        if score is None:
            return FakeRun(2)
        given = {"seed": "0"} | dict(setting.split("=", 1) for setting in arguments)
        seed, count = int(given["seed"]), int(given.get("num_seeds", 1))
        folders = [folder] if count == 1 else [folder / f"seed{seed + k}" for k in range(count)]
        for k, own in enumerate(folders):
            finish(own, seed + k, score)
        return FakeRun(0)


def finish(folder: Path, seed: int, score: float) -> None:
    """Write the files of a finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text('{"kind": "evaluation", "env_steps": 0, "score": 1.0}\n')
    metrics = dict.fromkeys(("area_under_curve", "score_at_switch", "worst_score", "final_score"), score)
    about = {"numbers": NUMBERS, "processor": processor(), "seed": seed, "seconds": {"total": 36.0}}
    about |= {"refreshes": 0, "refused_refreshes": 0}
    (folder / "summary.json").write_text(json.dumps(about | metrics))


class FakeRun:
    """A process that has ended with `code`."""

    def __init__(self, code: int | None):
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> int:
        return self.code or 0

    def terminate(self) -> None:
        self.code = 130
