import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import leaves, names
from process_worker import work

from o2o_diffusion.training.checkpoint import load_checkpoint

WORKER = Path(__file__).parent / "process_worker.py"
SHORT = ["pretrain_updates=5", "warmup_steps=30", "online_steps=31", "eval_interval=1000", "final_eval_episodes=1"]


def launch(folder: Path, processes: int, overrides: list[str]) -> tuple[dict, dict]:
    """States before and after; `--multi_gpu` is what really starts several processes, with gloo on a CPU."""
    flags = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--num_processes", "1", "--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(WORKER), str(folder), *overrides]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_checkpoint(folder / "before"), load_checkpoint(folder / "after")


def parameters(state: dict) -> torch.Tensor:
    """Every float tensor of the networks, and of a learner inside, in one vector."""
    others = ("optimizer", "averages", "contrast_rows", "normalizer")  # not a network, or fitted and not trained
    named = [item for item in sorted(leaves(state).items()) if not any(other in item[0] for other in others)]
    tensors = [t for path, t in named if path.count("/") > 1 and isinstance(t, torch.Tensor) and t.is_floating_point()]
    return torch.cat([torch.empty(0), *(tensor.flatten() for tensor in tensors)]).nan_to_num(posinf=0.0, neginf=0.0)


def assert_same_algorithm(one: tuple[dict, dict], two: tuple[dict, dict]) -> None:
    """Compare states before and after of 1 and of 2 processes, by how far training moved them."""
    (before, first), (other_before, second) = one, two
    assert (before["processes"], other_before["processes"]) == (1, 2)
    for part in ("learner", "generator"):
        start, end, other_end = (parameters(state[part]) for state in (before, first, second))
        if part == "generator" and not len(start):  # a generator without networks
            continue
        change = (end - start).norm()
        assert change > 0 and (other_end - end).norm() / change < 1e-4, part
    for pool in ("GENERATED_OFFLINE", "GENERATED_ONLINE"):
        rows = [state["pools"]["pools"][pool]["rows"]["observations"] for state in (first, second)]
        assert torch.allclose(*rows, atol=1e-2), pool


def test_two_processes_draw_and_train_what_one_does(tmp_path, tiny_run, tiny_generator):
    """One component of each kind; the others are compared in the slow test below."""
    chosen = ["learner=iql", *tiny_generator("cfdg"), "sampler=mixture", "generator.updates=5"]
    overrides = [*tiny_run, *chosen, *SHORT]
    work(tmp_path / "one", overrides)
    one = load_checkpoint(tmp_path / "one" / "before"), load_checkpoint(tmp_path / "one" / "after")
    two = launch(tmp_path / "two", 2, overrides)
    assert_same_algorithm(one, two)
    assert len(one[1]["pools"]["pools"]["GENERATED_ONLINE"]["rows"]["rewards"]) == 40
    samplers = [states[1]["sampler"] for states in (one, two)]
    assert samplers[0]["carry"] == samplers[1]["carry"]
    assert torch.equal(*(sampler["rng"]["generator"] for sampler in samplers))
    online = [states[1]["pools"]["pools"]["ONLINE"]["rows"] for states in (one, two)]
    assert len(online[0]["actions"]) == 31 and torch.allclose(online[0]["actions"], online[1]["actions"], atol=1e-4)


def stems(group: str) -> list[str]:
    return [path.stem for path in names(group)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner", "generator", "sampler"),
    [(learner, "cfdg", "mixture") for learner in stems("learner")]
    + [("iql", generator, "mixture") for generator in stems("generator") if generator != "cfdg"]
    + [("iql", "cfdg", sampler) for sampler in stems("sampler") if sampler != "mixture"],
)
def test_two_processes_are_the_same_algorithm(
    tmp_path, short_run, tiny_generator, tiny_learner, learner, generator, sampler
):
    components = [*tiny_learner(learner), *tiny_generator(generator), f"sampler={sampler}"]
    overrides = [*short_run, *components, *SHORT, "sampler.ramp=50"]
    assert_same_algorithm(*(launch(tmp_path / str(processes), processes, overrides) for processes in (1, 2)))
