import subprocess
import sys
from pathlib import Path

import pytest
import torch

from o2o_diffusion.training.checkpoint import load_checkpoint

WORKER = Path(__file__).parent / "process_worker.py"


def launch(folder: Path, processes: int, overrides: list[str]) -> tuple[dict, dict]:
    """States before and after; `--multi_gpu` is what really starts several processes, with gloo on a CPU."""
    flags = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--num_processes", "1", "--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(WORKER), str(folder), *overrides]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_checkpoint(folder / "before"), load_checkpoint(folder / "after")


def parameters(state: dict) -> torch.Tensor:
    """Every float tensor of the networks in one vector."""
    others = ("optimizer", "averages", "pool")  # what is not a network
    networks = [
        part for name, part in sorted(state.items()) if isinstance(part, dict) and not any(o in name for o in others)
    ]
    named = [item for part in networks for item in part.items() if "normalizer" not in item[0]]  # fitted, not trained
    tensors = [t for _, t in named if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return torch.cat([tensor.flatten() for tensor in tensors]).nan_to_num(posinf=0.0, neginf=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "generator"),
    [(learner, "cfdg") for learner in ("famo2o", "sac", "td3_bc", "pex", "cal_ql")]
    + [("iql", generator) for generator in ("edis", "synther", "pgr")],
)
def test_two_processes_are_the_same_algorithm(tmp_path, tiny_run, tiny_generator, learner, generator):
    short = ["pretrain_updates=5", "warmup_steps=30", "online_steps=31", "eval_interval=1000", "final_eval_episodes=1"]
    overrides = [*tiny_run, *tiny_generator(generator), *short, "generator.updates=5", f"learner={learner}"]
    first_before, first = launch(tmp_path / "one", 1, overrides)
    second_before, second = launch(tmp_path / "two", 2, overrides)
    assert (first_before["processes"], second_before["processes"]) == (1, 2)
    for part in ("learner", "generator"):
        start, one, two = (parameters(state[part]) for state in (first_before, first, second))
        change = (one - start).norm()
        assert change > 0 and (two - one).norm() / change < 1e-4, part
    rows = [state["pools"]["pools"]["GENERATED_ONLINE"]["rows"]["observations"] for state in (first, second)]
    assert len(rows[0]) >= 40 and torch.allclose(*rows, atol=1e-2)
