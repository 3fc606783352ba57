"""YAML groups + overrides -> frozen settings -> components.

A component is one Python file with a nested frozen `Config`, its defaults next to the equations, plus one YAML file
with its `target` and overrides. There is no registry: `target` is a dotted path, also for third-party components.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from o2o_diffusion.errors import InputError, keep_secret, nearest
from o2o_diffusion.ranges import violations
from o2o_diffusion.trust import is_trusted, trust

P = ParamSpec("P")
T = TypeVar("T")
PACKAGE = Path(__file__).parent
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""Inside the package in a wheel, next to it in a checkout."""
MODULES = "modules"
"""Override that names modules from which components may be imported, for this process only."""
MOVED = {
    "o2o_diffusion.tasks.Task": "o2o_diffusion.environments.tasks.Task",
    "o2o_diffusion.logger.Logger": "o2o_diffusion.training.logger.Logger",
    "o2o_diffusion.samplers.choice.Choice": "o2o_diffusion.samplers.choice.RecentOrUnion",
}
"""Targets in users' YAML files of version 0.1."""
ASKERS = ("task", "generator", "learner")
"""Groups with an optional `run:` section in their files, the run settings requested by a method; later groups win.

The section sets run settings and selects components of other groups, e.g. `sampler: {name: mixture, ramp: 0}`. Every
name is checked. Programs without a learner (generator training, plugins) ignore the section, because settings of the
same name have a different meaning there.
"""


@dataclass(frozen=True)
class Component:
    """A component's class and its settings."""

    target: type
    config: Any

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Construct the component."""
        return self.target(self.config, *args, **kwargs)


@dataclass(frozen=True)
class Settings:
    """All settings of a run: run settings, one component per group, and everything as plain data for reloading.

    `origins` maps each run setting or group set by a component's `run:` section to that component ("learner rlpd").
    """

    run: Any
    components: dict[str, Component]
    plain: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """Values requested by components, e.g. "updates_per_step 20, sampler mixture (learner rlpd)"."""
        asked: dict[str, list[str]] = {}
        for name, origin in self.origins.items():
            is_group = name in self.components
            value = self.components[name].target.__name__.lower() if is_group else getattr(self.run, name)
            asked.setdefault(origin, []).append(f"{name} {value}")
        return ", ".join(f"{', '.join(values)} ({origin})" for origin, values in asked.items())

    def with_run(self, **values: Any) -> "Settings":
        """Return a copy with `values` replacing run settings."""
        return replace(self, run=replace(self.run, **values), plain=self.plain | values)

    def to_yaml(self) -> str:
        """All settings as YAML that can be composed again; environment secrets stay unresolved."""
        return OmegaConf.to_yaml(OmegaConf.create(self.plain))


@dataclass(frozen=True)
class Choice:
    """A group's component before validation: its name, its settings, and the `run:` section of its file."""

    name: str | None
    settings: DictConfig
    run: Any = None


@dataclass(frozen=True)
class Choices:
    """Settings from files and overrides, before validation.

    `layers` are run settings, lowest precedence first, each with the prefix for its names in error messages.
    """

    layers: list[tuple[str, Any]]
    groups: dict[str, Choice]
    origins: dict[str, str]


def one_line(function: Callable[P, T]) -> Callable[P, T]:
    """Let `function` raise InputError for anything wrong: YAML, OmegaConf and interpolations have many exceptions."""

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"settings: {_reason(error)}") from error

    return checked


@one_line
def compose(
    base: Path | None, run: type, groups: Sequence[str], overrides: Sequence[str] = (), *, recorded: Sequence[str] = ()
) -> Settings:
    """Compose settings from the file `base`, the files of its groups and `overrides` ("key=value"); later ones win.

    `overrides` are the user's own words: modules that they name are trusted. `recorded` ones are read from a file, win
    over `base` only, and make nothing trusted. See `choose` for the precedence. Every value is then checked against the
    type and range of its field. Raises InputError, one line, for an unknown setting, a wrong type, or a value out of
    range.
    """
    choices = choose(base, groups, [*recorded, *trusted(overrides)])
    root = OmegaConf.structured(run)
    for prefix, layer in choices.layers:
        root = _merged(root, layer, prefix)
    own = _checked(root, "", choices.origins)
    targets = {}
    with open_dict(root), read_write(root):
        for group in groups:
            content = choices.groups[group].settings
            targets[group] = locate(str(content.pop("target", "") or f"configs/{group}: 'target' is missing"))
            root[group] = _merged(OmegaConf.structured(targets[group].Config), content, f"{group}.")
    plain: dict[str, Any] = OmegaConf.to_container(root, resolve=False)  # type: ignore[assignment]
    for group, target in targets.items():
        plain[group] = {"target": f"{target.__module__}.{target.__qualname__}", **plain[group]}
    components = {group: Component(cls, _checked(root[group], f"{group}.")) for group, cls in targets.items()}
    return Settings(own, components, plain, choices.origins)


@one_line
def choose(base: Path | None, groups: Sequence[str], overrides: Sequence[str]) -> Choices:
    """Select each group's component and the run settings from `base`, the components' `run:` sections and `overrides`.

    The file `base`, if given, sets each group to a name (`configs/<group>/<name>.yaml`), a path ending in .yaml, a
    `name` with overrides, or the settings themselves. `experiment=` names a file in configs/experiment. Precedence,
    lowest first: `base`, `run:` of task, generator and learner (`ASKERS`), experiment, overrides.
    """
    given = _parse(overrides, groups)
    bottom = load(base) if base else OmegaConf.create()
    experiment = load(find("experiment", str(given.pop("experiment")))) if "experiment" in given else {}
    askers = [group for group in ASKERS if group in groups]
    others = [group for group in groups if group not in askers]
    chosen = {group: _choice(group, [bottom.get(group), experiment.get(group)], given) for group in askers}
    requests = {group: chosen[group].run for group in askers if chosen[group].run and "learner" in groups}
    asked, origins = {}, {}
    for asker, request in requests.items():
        for key in request:
            if not any(_decides(source, key, others) for source in (experiment, given)):
                asked[key], origins[key] = request[key], f"{asker} {_short(chosen[asker].name)}"
    for group in others:
        chosen[group] = _choice(group, [bottom.get(group), asked.get(group), experiment.get(group)], given)
    layers = [("", _without(bottom, groups)), *((f"{key}.run.", _without(r, others)) for key, r in requests.items())]
    layers += [("", _without(source, groups)) for source in (experiment, given)]
    return Choices(layers, {group: chosen[group] for group in groups}, origins)


def component(group: str, name: str, settings: Mapping[str, Any]) -> Component:
    """The component of a group's file with `settings` changed, checked as in a run; for components with parts.

    The file's `run:` section is ignored.
    """
    file = load(find(group, name))
    target = locate(str(file.pop("target", "")))
    file.pop("run", None)
    node = _merged(_merged(OmegaConf.structured(target.Config), file), OmegaConf.create(dict(settings)), f"{name}.")
    return Component(target, _checked(node, f"{name}."))


def locate(target: str) -> type:
    """Import the class at a dotted path; raises InputError if there is none, or its module is not trusted."""
    module, _, name = MOVED.get(target, target).rpartition(".")
    if not is_trusted(module):
        raise InputError(
            f"target '{target}' is code outside of {PACKAGE.name}, which a file alone can't have imported; if you trust"
            f" it, add {MODULES}=[{module.partition('.')[0]}]"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"target '{target}' is not a class that can be imported ({error})") from error
    if not is_dataclass(getattr(found, "Config", None)):
        raise InputError(f"target '{target}' has no nested dataclass Config")
    return found


def available(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def trusted(overrides: Sequence[str]) -> list[str]:
    """Trust the modules that `overrides` name, by `modules=[...]` or as a target; returns the overrides but `modules`.

    Raises InputError if `modules` is no list of names.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key == MODULES:
            names = [name.strip() for name in value.strip("[] ").split(",")]
            if not all(name.replace(".", "_").isidentifier() for name in names):
                raise InputError(f"'{override}': expected names of modules, such as {MODULES}=[my_module]")
            trust(names)
        elif key.endswith(".target"):
            trust([value])
    return [override for override in overrides if not override.startswith(f"{MODULES}=")]


def _parse(overrides: Sequence[str], groups: Sequence[str]) -> DictConfig:
    for override in overrides:
        keep_secret(override)
        if "=" not in override.lstrip("="):
            raise InputError(f"'{override}' is not of the form setting=value")
    names = [o for o in overrides if o.split("=", 1)[0] in (*groups, "experiment")]
    given = OmegaConf.create()
    for override in overrides:  # a component's name and its settings share a key, so they are parsed separately
        if override not in names:
            try:
                given.merge_with_dotlist([override])
            except Exception as error:  # of YAML and OmegaConf, of many kinds
                raise InputError(f"'{override}' can't be read: {_reason(error)}") from error
    for override in names:
        group, name = override.split("=", 1)
        if group == "experiment":
            given[group] = name
        else:
            given[group] = OmegaConf.merge(given.get(group) or {}, {"name": name})  # the last name wins
    return given


def _choice(group: str, files: Sequence[Any], given: DictConfig) -> Choice:
    """Select a group's component from `files`, lowest precedence first, and the overrides `given`.

    Settings given with a name apply to that component; settings alone apply to the component selected so far.
    """
    choice: Any = OmegaConf.create()
    override = given.get(group) or OmegaConf.create()
    for own in (*files, override):
        own = own if isinstance(own, DictConfig) else OmegaConf.create({} if own is None else {"name": own})
        is_other = own.name != choice.get("name") if "name" in own else "target" in own and own is not override
        choice = OmegaConf.merge({} if is_other else choice, own)
    name = choice.pop("name", None)
    if name is None and "target" not in choice:
        raise InputError(f"no {group} is chosen; one of {', '.join(available(group))}")
    file = OmegaConf.create() if name is None else load(find(group, str(name)))
    run = file.pop("run", None) if group in ASKERS else None
    if not isinstance(run, DictConfig | None):
        raise InputError(f"{group} '{name}': 'run' is {run}, expected 'setting: value' lines")
    return Choice(name and str(name), OmegaConf.merge(file, choice), run)  # pyright: ignore[reportArgumentType]


def _decides(source: Any, key: str, groups: Sequence[str]) -> bool:
    """Whether `source` sets the run setting `key` or selects the component of group `key` (not only its settings)."""
    own = source.get(key)
    if key in groups and isinstance(own, DictConfig):
        return "name" in own or "target" in own
    return own is not None if key in groups else key in source


def _short(name: str | None) -> str:
    """A component's name; for a path, without folder and suffix."""
    return Path(str(name)).name.removesuffix(".yaml")


def _without(source: Any, groups: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key not in groups}


def find(group: str, name: str) -> Path:
    """Path of a group's file for component `name`, or `name` itself if it is a path; raises InputError if missing."""
    path = Path(name) if name.endswith(".yaml") else CONFIGS / group / f"{name}.yaml"
    if not path.is_file():
        known = available(group)
        raise InputError(f"unknown {group} '{name}'{nearest(name, known) or '; known: ' + ', '.join(known)}")
    return path


def load(path: Path) -> DictConfig:
    """Load the settings in a YAML file; raises InputError if it can't be read or has none."""
    try:
        text = path.read_text()
        keep_secret(text)
        content = OmegaConf.create(text) if text.strip() else None
    except Exception as error:
        raise InputError(f"{path}: {_reason(error)}") from error
    if not isinstance(content, DictConfig):
        raise InputError(f"{path}: expected 'setting: value' lines")
    return content


def _reason(error: Exception) -> str:
    """The first line of an exception's message, or its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _merged(node: Any, changes: Any, prefix: str = "") -> Any:
    """Merge `changes` into `node`; errors name the setting as the user writes it, with `prefix`."""
    try:
        return OmegaConf.merge(node, changes)
    except ConfigKeyError as error:
        parent, _, name = str(error.full_key).rpartition(".")
        known = OmegaConf.select(node, parent) if parent else node
        names = [str(key) for key in known] if isinstance(known, DictConfig) else []
        raise InputError(f"unknown setting '{prefix}{error.full_key}'{nearest(name, names)}") from error
    except OmegaConfBaseException as error:
        raise InputError(f"setting '{prefix}{error.full_key}': {_reason(error)}") from error


def _checked(node: Any, prefix: str, origins: Mapping[str, str] | None = None) -> Any:
    """Convert `node` to its dataclass; raises InputError for values out of range or contradictory settings."""
    try:
        if wrong := next(violations(node, prefix), None):
            raise InputError(wrong)
        return OmegaConf.to_object(node)
    except (OmegaConfBaseException, ValueError) as error:
        message = _reason(error)
        asked = [f"; '{name}' is asked for by {who}" for name, who in (origins or {}).items() if f"'{name}'" in message]
        raise InputError(f"{prefix.rstrip('.') or 'run'} settings: {message}{''.join(asked)}") from error
