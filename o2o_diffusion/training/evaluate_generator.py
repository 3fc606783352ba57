"""Evaluate a saved generator: sample rows, compare them with datasets, write report.json and page.png."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from o2o_diffusion.agents import NoAgent
from o2o_diffusion.data.datasets import Dataset, load_dataset
from o2o_diffusion.data.loading import make_replay
from o2o_diffusion.environments.physics import show_physics
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.pretrained import find_folder, load_generator, read_provenance
from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality.comparison import evaluate
from o2o_diffusion.quality.dynamics import Simulator
from o2o_diffusion.quality.page import save_page
from o2o_diffusion.quality.real import RealData, transitions
from o2o_diffusion.quality.remarks import remarks
from o2o_diffusion.replay import Replay
from o2o_diffusion.storage import atomic_file, save_json
from o2o_diffusion.types import GENERATED, EnvironmentSpec, Transitions, TransitionSpec

SOURCES = {source.label: source for source in GENERATED}
REPORT, PAGE = "report.json", "page.png"


@dataclass(frozen=True)
class Config:
    """Settings of the evaluation."""

    generator: Annotated[str | None, "folder or Hugging Face Hub id of a saved generator"] = None
    dataset: Annotated[str | None, "its training dataset: Minari id, folder, .hdf5 or .npz"] = None
    online_dataset: Annotated[str | None, "its training dataset with the online label; null: none"] = None
    held_out: Annotated[
        str | None, "dataset it was not trained on; null: the tenth of `dataset` that generators are not trained on"
    ] = None
    online_held_out: Annotated[
        str | None, "held-out dataset with the online label; null: a tenth of `online_dataset`"
    ] = None
    rows: Annotated[int, "number of rows of each kind to compare", Ge(1)] = 10_000
    policy: Annotated[str | None, "folder of a run; its policy is compared with the actions; null: none"] = None
    environment: Annotated[str | None, "Gymnasium id of the simulator for the dynamics; null: the dataset's"] = None
    output: Annotated[str | None, "folder for report.json and page.png"] = None
    seed: Annotated[int, "random seed of the noise and the choice of rows", Ge(0)] = 0
    threads: Annotated[int, "number of threads; 0: all cores", Ge(0)] = 0


def evaluate_saved(config: Config, offline: Dataset, agent: Agent | None = None) -> dict[str, Any]:
    """Evaluate `config.generator`, trained on the dataset `offline`; writes the report to `config.output`, returns it.

    Adds "notes" on the numbers and the "settings" to the report of `evaluate`. Raises InputError if an input is
    missing, altered or incompatible.
    """
    start = time.perf_counter()
    generator = load_generator(str(config.generator), offline.spec, seed=config.seed)
    provenance = read_provenance(find_folder(str(config.generator)))
    real, notes = real_rows(config, offline, provenance)
    simulators, known = find_simulators(environments(config, offline, provenance), real)
    sampling = time.perf_counter()
    generated = sample(generator, real, config.rows, agent)
    sampling = time.perf_counter() - sampling
    lost = {label: config.rows - len(rows) for label, rows in generated.items() if len(rows) < config.rows}
    notes += [*known, *(f"{label}: {number} rows were dropped by the generator" for label, number in lost.items())]
    report = evaluate(generated, real, rows=config.rows, simulators=simulators, agent=agent, seed=config.seed)
    output, drawing = Path(str(config.output)), time.perf_counter()
    with atomic_file(output / PAGE) as page:
        save_page(report, generated, real, f"{config.generator} on {offline.name}", page)
    seconds = {"sampling": sampling, **report["seconds"], "page": time.perf_counter() - drawing}
    notes += remarks(report["labels"])
    report |= {"seconds": seconds | {"total": time.perf_counter() - start}, "notes": notes, "settings": asdict(config)}
    save_json(output / REPORT, report)
    return report


def environments(config: Config, dataset: Dataset, provenance: dict[str, Any]) -> list[EnvironmentSpec]:
    """Environments that the rows may come from: `config.environment`, or else the dataset's and the generator's.

    The generator's is the one in which its policy acted, whose physics can differ from the data's.
    """
    if config.environment:
        return [EnvironmentSpec(config.environment, observation_keys=dataset.observation_keys)]
    online = EnvironmentSpec(**provenance["environment"]) if provenance.get("environment") else None
    return [environment for environment in (dataset.environment, online) if environment is not None]


def find_simulators(
    environments: list[EnvironmentSpec], real: dict[str, RealData]
) -> tuple[dict[str, Simulator], list[str]]:
    """For each label the simulator that reproduces its real rows best, and a note on the reference of its dynamics."""
    simulators, notes = {}, []
    for label, data in real.items():
        found = [(spec, Simulator.find(spec, data.held_out)) for spec in environments]
        exact = [(spec, simulator) for spec, simulator in found if simulator is not None]
        reference = "predicted by networks fitted on held-out real rows"
        if exact:
            spec, simulators[label] = min(exact, key=lambda pair: pair[1].error)
            reference = f"simulated in {spec.id}{show_physics(spec.physics)}"
        notes.append(f"{label}: dynamics error against next observations {reference}")
    return simulators, notes


def real_rows(config: Config, offline: Dataset, provenance: dict[str, Any]) -> tuple[dict[str, RealData], list[str]]:
    """Real rows of each label, and notes on held-out rows in the training data according to `provenance`.

    Generators of this package are not trained on the rows held out of their datasets.
    """
    online = load_dataset(config.online_dataset) if config.online_dataset else None
    datasets = {"offline": (offline, config.held_out, provenance.get("dataset_sha256"))}
    if online:
        datasets["online"] = (online, config.online_held_out, provenance.get("online_dataset_sha256"))
    replay, real, notes = make_replay(offline, online), {}, []
    for label, (dataset, held_out, trained_on) in datasets.items():
        own = RealData.of(replay, SOURCES[label])
        assert own is not None  # a dataset has rows
        source = load_dataset(held_out) if held_out else dataset
        _check_columns(source, offline.spec)
        real[label] = replace(own, held_out=transitions(source.episodes)) if held_out else own
        is_known = source.fingerprint == trained_on
        is_apart = not is_known if held_out else is_known and not own.seen
        if not is_apart:
            certain = "were" if is_known else "may have been"
            notes.append(f"{label}: the held-out real rows, of {source.name}, {certain} trained on")
    return real, notes


def sample(generator: Any, real: dict[str, RealData], rows: int, agent: Agent | None) -> dict[str, Transitions]:
    """Sample at most `rows` rows for each label in `real`, with the training rows in the replay for partial noising."""
    sources = {label: SOURCES[label] for label in real}
    replay = Replay(generator.spec, {source.real: len(real[label].training) for label, source in sources.items()})
    for label, source in sources.items():
        replay.pools[source.real].append(real[label].training)
    options: dict[str, Any] = {"replay": replay, "agent": NoAgent() if agent is None else agent}
    return {label: generator.sample(rows, source=source, **options) for label, source in sources.items()}


def _check_columns(dataset: Dataset, spec: TransitionSpec) -> None:
    if dataset.spec != spec:
        raise InputError(f"{dataset.name} has {dataset.spec}, expected {spec} as in `dataset`")
