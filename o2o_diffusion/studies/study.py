"""A study: cells, which are one value on each axis, times seeds, read from one YAML file."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.settings import compose, find
from o2o_diffusion.studies.keys import key_of

DATA = "<data>"
"""Stands for the folder of the datasets in a study's settings, so that results don't depend on where it is."""


@dataclass(frozen=True)
class Cell:
    """One run: its value on every axis, its seed, and its settings as the command line takes them.

    `key` is the same for all seeds. `pretraining` is the offline run that it starts from, if any. With `num_seeds`, it
    stands for the runs of several seeds, from `seed` on, with stacked learners.
    """

    values: Mapping[str, str]
    seed: int
    settings: tuple[str, ...]
    key: str
    num_seeds: int = 1
    script: str = "finetune.py"
    pretraining: "Cell | None" = None

    @property
    def name(self) -> str:
        """The values and the seeds, for logs and folders."""
        seeds = str(self.seed) if self.num_seeds == 1 else f"{self.seed}-{self.seed + self.num_seeds - 1}"
        return "_".join([*self.values.values(), seeds])

    def group(self, compare: str) -> str:
        """The values of the axes other than `compare`."""
        return group_of(self.values, compare)


@dataclass(frozen=True)
class Screen:
    """Drop cells from seed `seeds` on if the first seeds show nothing."""

    oracles: Annotated[
        tuple[str, ...], "values of the compared axis whose best gain decides for all; none: each for itself"
    ] = ()
    gain: Annotated[float, "least mean gain in area under the curve over the baseline"] = 3.0
    seeds: Annotated[int, "seeds before which nothing is dropped; 0: never drop", Ge(0)] = 0
    groups: Annotated[int, "number of groups (tasks) that run before anything is dropped; 0: all", Ge(0)] = 0


@dataclass(frozen=True)
class Study:
    """The cells of a study and how they are compared."""

    @dataclass(frozen=True)
    class Config:
        """The content of a file in configs/study."""

        axes: Annotated[dict[str, Any], "axis -> value -> list of settings; cells are all combinations"] = field(
            default_factory=dict
        )
        skip: Annotated[list[dict[str, str]], "cells to leave out, by some of their values"] = field(
            default_factory=list
        )
        compare: Annotated[str, "axis whose values are compared with `baseline`, all else equal"] = ""
        baseline: Annotated[str, "value of the compared axis"] = ""
        settings: Annotated[list[Any], "settings of every cell"] = field(default_factory=list)
        seeds: Annotated[int, "seeds 0 ... N-1", Ge(1)] = 10
        share_pretraining: Annotated[bool, "pretrain once per learner, data and seed"] = False
        screen: Screen = field(default_factory=Screen)

    name: str
    config: Config

    @classmethod
    def load(cls, name: str) -> "Study":
        """Read configs/study/<name>.yaml or the file `name`; raises InputError, one line, if it is inconsistent."""
        path = find("study", name)
        config: Any = compose(path, cls.Config, ()).run
        if config.baseline not in (values := config.axes.get(config.compare, {})):
            hint = nearest(config.baseline, values)
            raise InputError(f"{path}: baseline '{config.baseline}' is no value of axis '{config.compare}'{hint}")
        for name, axis, value in _named(config):
            if value not in config.axes.get(axis, {}):
                raise InputError(f"{path}: {name}: '{value}' is no value of axis '{axis}'")
        return cls(path.stem, config)

    def cells(self, seeds: int | None = None) -> Iterator[Cell]:
        """All cells of seed 0, then all of seed 1, and so on; in the order of the axes' values."""
        settings, start = self.settings(), ("pretrained=shared",) if self.config.share_pretraining else ()
        for seed in range(seeds or self.config.seeds):
            for values, own in settings.items():
                named = dict(zip(self.config.axes, values, strict=True))
                yield Cell(named, seed, (*own, f"seed={seed}"), key_of((*own, *start)))

    def settings(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Settings of every combination of the axes' values but those to skip, without a seed."""
        axes, common = self.config.axes, self.config.settings
        return {
            values: tuple(flat([common, *(axes[axis][value] for axis, value in zip(axes, values, strict=True))]))
            for values in itertools.product(*axes.values())
            if not any(skip.items() <= dict(zip(axes, values, strict=True)).items() for skip in self.config.skip)
        }

    def variants_and_groups(self) -> list[tuple[str, str]]:
        """Value on the compared axis, and the group, of every combination."""
        compare = self.config.compare
        combinations = (dict(zip(self.config.axes, values, strict=True)) for values in self.settings())
        return [(values[compare], group_of(values, compare)) for values in combinations]


def _named(config: Study.Config) -> Iterator[tuple[str, str, str]]:
    """(setting, axis, value) of every value that a study's settings name."""
    yield from (("screen.oracles", config.compare, value) for value in config.screen.oracles)
    yield from (("skip", axis, value) for skip in config.skip for axis, value in skip.items())


def group_of(values: Mapping[str, str], compare: str) -> str:
    """The values of the axes other than `compare`."""
    return " ".join(value for axis, value in values.items() if axis != compare) or "all"


def flat(settings: Any) -> Iterator[str]:
    """The strings of nested lists, so that a YAML anchor can be used within a list."""
    for setting in settings:
        if isinstance(setting, str):
            yield setting
        else:
            yield from flat(setting)


def with_data(settings: tuple[str, ...], data: Path | None) -> list[str]:
    """`settings` with the folder of the datasets in place; raises InputError if it is needed and not given."""
    if data is None and any(DATA in setting for setting in settings):
        raise InputError(f"this study needs data=<folder of its datasets>, for {DATA} in its settings")
    return [setting.replace(DATA, str(data)) for setting in settings]
