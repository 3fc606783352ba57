"""YAML groups + overrides -> frozen settings -> components.

A component is one file with a nested frozen `Config` whose defaults stand beside the maths, plus one YAML that names
its `target` and lists differences. There is no registry: `target` is a dotted path, a third party's like ours.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from o2o_diffusion.errors import InputError, nearest

PACKAGE = Path(__file__).parent
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"
"""In the wheel the configurations lie in the package, in a checkout beside it."""


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
    """All settings of a run: its own, one component per group, and the whole as plain data that can be read again."""

    run: Any
    components: dict[str, Component]
    plain: dict[str, Any]

    def with_run(self, **values: Any) -> "Settings":
        """The same settings with `values` in place of the run's own."""
        return replace(self, run=replace(self.run, **values), plain=self.plain | values)

    def save(self, path: Path) -> None:
        """Write everything as YAML; environment secrets stay unresolved."""
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(self.plain)))


def compose(base: Path | None, run: type, groups: Sequence[str], overrides: Sequence[str] = ()) -> Settings:
    """Settings of the file `base`, its groups' files and `overrides` ("key=value"), last wins.

    `base`, where there is one, gives each group a name (`configs/<group>/<name>.yaml`), a path ending in .yaml, a
    `name` with differences, or the settings themselves. `experiment=` names a file under configs/experiment that is
    laid over it.
    Raises InputError, one line, for whatever is unknown or of the wrong type.
    """
    chosen = load(base) if base else OmegaConf.create()
    given = _parse(overrides, groups)
    if "experiment" in given:
        experiment = load(find("experiment", str(given.pop("experiment"))))
        chosen = OmegaConf.merge(chosen, experiment)
    root = OmegaConf.structured(run)
    for source in (chosen, given):
        root = _merged(root, {key: value for key, value in source.items() if key not in groups})
    targets = {}
    with open_dict(root), read_write(root):
        for group in groups:
            content = group_settings(group, chosen.get(group), given)  # pyright: ignore[reportArgumentType]
            targets[group] = locate(str(content.pop("target", "") or f"configs/{group}: 'target' is missing"))
            root[group] = _merged(OmegaConf.structured(targets[group].Config), content, f"{group}.")
    plain: dict[str, Any] = OmegaConf.to_container(root, resolve=False)  # type: ignore[assignment]
    for group, target in targets.items():
        plain[group] = {"target": f"{target.__module__}.{target.__qualname__}", **plain[group]}
    try:
        components = {name: Component(cls, OmegaConf.to_object(root[name])) for name, cls in targets.items()}
        with open_dict(root), read_write(root):
            for group in groups:
                del root[group]
        return Settings(OmegaConf.to_object(root), components, plain)
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"settings: {str(error).splitlines()[0]}") from error


def locate(target: str) -> type:
    """The class named by a dotted path; InputError when there is none."""
    module, _, name = target.rpartition(".")
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


def _parse(overrides: Sequence[str], groups: Sequence[str]) -> DictConfig:
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise InputError(f"'{override}' is not of the form setting=value")
    names = [o for o in overrides if o.split("=", 1)[0] in (*groups, "experiment")]
    try:  # a component's name and its settings share a key, so they are kept apart
        given = OmegaConf.from_dotlist([o for o in overrides if o not in names])
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"overrides {list(overrides)}: {str(error).splitlines()[0]}") from error
    for override in names:
        group, name = override.split("=", 1)
        if group == "experiment":
            given[group] = name
        else:
            given[group] = OmegaConf.merge({"name": name}, given.get(group) or {})
    return given


def group_settings(group: str, chosen: Any, given: DictConfig) -> DictConfig:
    """A group's settings: of the named file, or as `chosen` holds them; differences beside a name go with that name."""
    override = given.get(group) or OmegaConf.create({})
    own = chosen if isinstance(chosen, DictConfig) else OmegaConf.create({"name": chosen})
    name = override.pop("name", None) or own.get("name")
    if name is None and "target" not in own:
        raise InputError(f"no {group} is chosen; one of {', '.join(available(group))}")
    content = own if name is None else load(find(group, str(name)))
    if name is not None and name == own.get("name"):
        content = OmegaConf.merge(content, {key: value for key, value in own.items() if key != "name"})
    return OmegaConf.merge(content, override)  # type: ignore[return-value]


def find(group: str, name: str) -> Path:
    """The file of a group's component `name`, or the path `name`; InputError when there is none."""
    path = Path(name) if name.endswith(".yaml") else CONFIGS / group / f"{name}.yaml"
    if not path.is_file():
        known = available(group)
        raise InputError(f"unknown {group} '{name}'{nearest(name, known) or '; known: ' + ', '.join(known)}")
    return path


def load(path: Path) -> DictConfig:
    """The settings in a YAML file; InputError when it holds none."""
    try:
        content = OmegaConf.load(path)
    except Exception as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    if not isinstance(content, DictConfig):
        raise InputError(f"{path}: expected 'setting: value' lines")
    return content


def _merged(node: Any, changes: Any, prefix: str = "") -> Any:
    """`node` with `changes`; an error names the setting as the user writes it, with `prefix`."""
    try:
        return OmegaConf.merge(node, changes)
    except ConfigKeyError as error:
        parent, _, name = str(error.full_key).rpartition(".")
        known = OmegaConf.select(node, parent) if parent else node
        names = [str(key) for key in known] if isinstance(known, DictConfig) else []
        raise InputError(f"unknown setting '{prefix}{error.full_key}'{nearest(name, names)}") from error
    except OmegaConfBaseException as error:
        raise InputError(f"setting '{prefix}{error.full_key}': {str(error).splitlines()[0]}") from error
