"""A saved generator against datasets: load it, draw rows, compare them, write report.json and page.png."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.pretrained import find_folder, load_generator, read_facts
from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality.comparison import evaluate
from o2o_diffusion.quality.dynamics import Simulator
from o2o_diffusion.quality.page import save_page
from o2o_diffusion.quality.real import Real, transitions
from o2o_diffusion.replay import Replay
from o2o_diffusion.types import EnvironmentSpec, Source, Transitions, TransitionSpec

SOURCES = {
    "offline": (Source.OFFLINE, Source.GENERATED_OFFLINE),
    "online": (Source.ONLINE, Source.GENERATED_ONLINE),
}
REPORT, PAGE = "report.json", "page.png"


@dataclass(frozen=True)
class Config:
    """What to measure, and against what."""

    generator: Annotated[str | None, "folder of a saved generator, or its id on the hub"] = None
    dataset: Annotated[str | None, "dataset it was trained on: Minari id, folder, .hdf5 or .npz"] = None
    online_dataset: Annotated[str | None, "dataset whose rows carried the online label; null: none"] = None
    held_out: Annotated[
        str | None, "dataset it was not trained on; null: every fourth to tenth episode of `dataset`"
    ] = None
    online_held_out: Annotated[str | None, "the same for the online label"] = None
    rows: Annotated[int, "rows of each kind to compare"] = 10_000
    policy: Annotated[str | None, "folder of a run whose policy the actions are compared with; null: none"] = None
    environment: Annotated[str | None, "Gymnasium id to check the dynamics in; null: the dataset's own"] = None
    output: Annotated[str | None, "folder for report.json and page.png"] = None
    seed: Annotated[int, "of the noise and of the choice of rows"] = 0
    threads: Annotated[int, "threads; 0: as many as cores"] = 0


def evaluate_saved(config: Config, offline: Dataset, agent: Agent | None = None) -> dict[str, Any]:
    """The report on `config.generator`, trained on the dataset `offline`; written to `config.output`, and returned.

    To what `evaluate` returns it adds "notes", to be read with the numbers, and the "settings". Raises InputError for
    whatever is missing, altered or does not fit.
    """
    start = time.perf_counter()
    generator = load_generator(str(config.generator), offline.spec, seed=config.seed)
    real, notes = real_rows(config, offline, read_facts(find_folder(str(config.generator))))
    simulator, known = find_simulator(config, offline, real["offline"].held_out)
    sampling = time.perf_counter()
    generated = sample(generator, real, config.rows, agent)
    sampling = time.perf_counter() - sampling
    lost = {label: config.rows - len(rows) for label, rows in generated.items() if len(rows) < config.rows}
    notes += [known, *(f"{label}: {number} rows were dropped by the generator" for label, number in lost.items())]
    report = evaluate(generated, real, rows=config.rows, simulator=simulator, agent=agent, seed=config.seed)
    output, drawing = Path(str(config.output)), time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    save_page(report, generated, real, f"{config.generator} on {offline.name}", output / PAGE)
    seconds = {"sampling": sampling, **report["seconds"], "page": time.perf_counter() - drawing}
    report |= {"seconds": seconds | {"total": time.perf_counter() - start}, "notes": notes, "settings": asdict(config)}
    (output / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    return report


def find_simulator(config: Config, dataset: Dataset, real: Transitions) -> tuple[Simulator | None, str]:
    """A simulator of the task, if there is one, and a note on what the dynamics are compared with."""
    environment = EnvironmentSpec(config.environment) if config.environment else dataset.environment
    simulator = Simulator.find(environment, dataset.observation_keys, real)
    if environment is None or simulator is None:
        return None, "dynamics error: against next observations predicted by networks fitted on held-out real rows"
    return simulator, f"dynamics error: against next observations simulated in {environment.id}"


def real_rows(config: Config, offline: Dataset, facts: dict[str, Any]) -> tuple[dict[str, Real], list[str]]:
    """Real rows of each label, and a note on those that the generator may have seen, by the `facts` saved with it."""
    datasets = {"offline": (offline, config.held_out, facts.get("dataset_sha256"))}
    if config.online_dataset:
        online = load_dataset(config.online_dataset)
        datasets["online"] = (online, config.online_held_out, facts.get("online_dataset_sha256"))
    real, notes = {}, []
    for label, (dataset, held_out, trained_on) in datasets.items():
        _check_columns(dataset, offline.spec)
        source = load_dataset(held_out) if held_out else dataset
        _check_columns(source, offline.spec)
        apart = Real(transitions(source.episodes), transitions(dataset.episodes)) if held_out else None
        real[label] = apart or Real.split(dataset.episodes, config.rows)
        seen = source.fingerprint == trained_on
        if seen or not held_out:
            certain = "were" if seen else "may have been"
            notes.append(f"{label}: the held-out real rows, of {source.name}, {certain} trained on")
    return real, notes


def sample(generator: Any, real: dict[str, Real], rows: int, agent: Agent | None) -> dict[str, Transitions]:
    """At most `rows` generated rows of each label in `real`; the training rows are there for who starts from them."""
    replay = Replay(generator.spec, {SOURCES[label][0]: len(real[label].training) for label in real})
    for label in real:
        replay.pools[SOURCES[label][0]].append(real[label].training)
    options: dict[str, Any] = {"replay": replay, "agent": NoAgent() if agent is None else agent}
    return {label: generator.sample(rows, source=SOURCES[label][1], **options) for label in real}


def _check_columns(dataset: Dataset, spec: TransitionSpec) -> None:
    if dataset.spec != spec:
        raise InputError(f"{dataset.name} has {dataset.spec}, expected {spec} as in `dataset`")
