"""Write generated rows, with or without the real ones, as a new Minari dataset.

augment("D4RL/door/human-v2", "my/door-augmented-v0", generator="cfdg", num_samples=20_000)
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from o2o_diffusion.data.datasets import load_dataset
from o2o_diffusion.data.one_step import Layout, check_size, open_dataset, write_rows
from o2o_diffusion.data.writing import check_new_id
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.generators.pretrained import checksum, find_folder, load_generator
from o2o_diffusion.integrations.augmenter import Augmenter
from o2o_diffusion.quality.gate import judge
from o2o_diffusion.settings import available
from o2o_diffusion.types import Source, TransitionSpec


def augment(
    dataset: str | Path,
    output_id: str,
    *,
    generator: str = "cfdg",
    num_samples: int = 10_000,
    keep_real: bool = True,
    online: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Path:
    """Write `dataset`, followed by `num_samples` generated rows, as the Minari dataset `output_id`.

    Args:
        dataset: a Minari id or folder.
        output_id: a new id, namespace/name-vN.
        generator: name of a file in configs/generator, trained here, or the folder or Hub id of a saved generator,
            used as it is.
        num_samples: number of rows to generate; each becomes an episode of one step.
        keep_real: whether to write the episodes of `dataset` first, unchanged; False: generated rows only.
        online: data with the online label; if given, generated rows have the online label too, else the offline one.
        settings: overrides of a generator trained here, as in ["updates=2000"].
        seed: random seed.
        device: device for training and sampling the generator.

    Returns the new dataset's folder. Raises InputError (one line) if an argument is missing, in use or incompatible.
    """
    check_new_id(output_id)
    real = load_dataset(str(dataset))
    source = open_dataset(dataset)
    layout = Layout.of(real, source)
    check_size(num_samples, layout)
    options: dict[str, Any] = {"online": online, "seed": seed, "device": device}
    augmenter = _prepare(str(dataset), generator, real.spec, settings, options)
    label = Source.GENERATED_OFFLINE if online is None else Source.GENERATED_ONLINE
    rows = augmenter.generator.sample(num_samples, source=label, replay=augmenter.replay, agent=augmenter.agent)
    gate = augmenter.generator.next_refresh(augmenter.replay).gate
    verdict = judge({label: rows}, {label: num_samples}, augmenter.replay, gate)
    if not verdict.accepted:
        warnings.warn(f"generated rows are {verdict}; they are written anyway", stacklevel=2)
    known: dict[str, Any] = {"source_datasets": [real.name], "algorithm_name": type(augmenter.generator).__name__}
    if not _is_name(generator):
        known["generator_sha256"] = checksum(find_folder(generator))
    return write_rows(output_id, rows, layout, known, source if keep_real else None)


def _prepare(
    dataset: str, generator: str, spec: TransitionSpec, settings: Sequence[str], options: dict[str, Any]
) -> Augmenter:
    """Create an augmenter with an empty pool; its generator is a saved one or trained on `dataset`."""
    if _is_name(generator):
        augmenter = Augmenter(dataset, generator=generator, settings=settings, **options)
        augmenter.refresher.train(augmenter.replay, augmenter.agent)
        return augmenter
    if "/" not in generator and not Path(generator).is_dir():
        near = nearest(generator, available("generator"))
        raise InputError(f"unknown generator '{generator}'{near}; or name the folder of a saved one")
    loaded = load_generator(generator, spec, seed=options["seed"], device=options["device"])
    return Augmenter(dataset, generator=loaded, **options)


def _is_name(generator: str) -> bool:
    """Whether `generator` names a settings file of a generator to train, not a saved generator."""
    return generator in available("generator") or generator.endswith(".yaml")
