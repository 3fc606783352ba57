"""YAML groups + overrides -> frozen settings -> components.

A component is one file with a nested frozen `Config` whose defaults stand beside the maths, plus one YAML that names
its `target` and lists differences. There is no registry: `target` is a dotted path, a third party's like ours.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

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
    chosen = _load(base) if base else OmegaConf.create()
    given = _parse(overrides, groups)
    if "experiment" in given:
        experiment = _load(_find("experiment", str(given.pop("experiment"))))
        chosen = OmegaConf.merge(chosen, experiment)
    root = OmegaConf.structured(run)
    for source in (chosen, given):
        root = _merged(root, {key: value for key, value in source.items() if key not in groups})
    targets = {}
    with open_dict(root), read_write(root):
        for group in groups:
            content = _group(group, chosen.get(group), given)  # pyright: ignore[reportArgumentType]
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


def command_line(
    description: str,
    base: str | None,
    run: type,
    groups: Sequence[str],
    argv: Sequence[str],
    flags: dict[str, str] | None = None,
) -> tuple[Settings | None, argparse.Namespace]:
    """Parse a script's command line: `--<group> name`, `key=value` overrides, `--help` with every setting.

    `flags` adds options that take an optional value (`--resume`). Returns None instead of settings when one is given.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_help(base, run, groups, argv) if {"-h", "--help"} & set(argv) else None,
        usage=f"%(prog)s {'[--GROUP NAME ...] ' if groups else ''}[setting=value ...]",
    )
    parser.add_argument("overrides", nargs="*", metavar="setting=value", help="any setting listed below")
    choices = [*groups, "experiment"] if "learner" in groups else list(groups)
    for group in choices:
        parser.add_argument(f"--{group}", metavar="NAME", help=f"one of {', '.join(available(group))}")
    for flag, text in (flags or {}).items():
        parser.add_argument(f"--{flag}", nargs="?", const="auto", help=text)
    arguments = parser.parse_intermixed_args(list(argv))
    for flag in flags or {}:
        if getattr(arguments, flag) is not None:
            if arguments.overrides:
                raise InputError(f"--{flag} takes its settings from the run; leave out {' '.join(arguments.overrides)}")
            return None, arguments
    named = [f"{group}={getattr(arguments, group)}" for group in choices if getattr(arguments, group) is not None]
    return compose(CONFIGS / base if base else None, run, groups, [*named, *arguments.overrides]), arguments


def available(group: str) -> list[str]:
    """Names of the YAML files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def main(function: Callable[[list[str]], int | None]) -> None:
    """Run a script: a user's mistake is one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        sys.exit(function(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def describe(cls: type, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of every setting of a Config class, nested ones under their dotted names."""
    rows = []
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        meaning = getattr(hints[field.name], "__metadata__", ("",))[0]
        if is_dataclass(default) and not isinstance(default, type):
            rows += describe(type(default), f"{prefix}{field.name}.")
        else:
            rows.append((prefix + field.name, default, meaning))
    return rows


def _help(base: str | None, run: type, groups: Sequence[str], argv: Sequence[str]) -> str:
    """Every setting, with the values of the chosen components, which are the base's unless `argv` names others."""
    chosen: Any = _load(CONFIGS / base) if base else OmegaConf.create()
    for experiment in _named("experiment", argv):
        chosen = OmegaConf.merge(chosen, _load(_find("experiment", experiment)))
    lines = ["settings (setting=value; default; meaning):"]
    sections, differing = [("", run, "")], {"": chosen}
    for group in groups:
        own = chosen[group]
        name = [str(own.name if isinstance(own, DictConfig) else own), *_named(group, argv)][-1]
        content = _group(group, own, OmegaConf.create({group: {"name": name}}))
        sections.append((f"{group}.", locate(str(content.target)), name))
        differing[f"{group}."] = content
    for prefix, cls, name in sections:
        if name:
            lines += ["", f"{prefix[:-1]} = {name} ({cls.__doc__.splitlines()[0] if cls.__doc__ else ''})"]
        config = cls.Config if prefix else cls  # type: ignore[attr-defined]
        differences = OmegaConf.to_container(differing[prefix])
        for setting, default, meaning in describe(config, prefix):
            value = differences.get(setting.removeprefix(prefix), default)  # type: ignore[union-attr]
            lines.append(f"  {setting}={_shown(value)}".ljust(48) + f" {meaning}")
    return "\n".join(lines)


def _named(group: str, argv: Sequence[str]) -> list[str]:
    """What `argv` chooses for `group`, as --group NAME or group=NAME."""
    named = [name for word, name in pairwise([*argv, ""]) if word == f"--{group}"]
    return named + [word.partition("=")[2] for word in argv if word.startswith(f"{group}=")]


def _shown(value: Any) -> str:
    """`value` as one would write it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{...}" if isinstance(value, dict) else str(list(value) if isinstance(value, tuple) else value)


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


def _group(group: str, chosen: Any, given: DictConfig) -> DictConfig:
    """A group's settings: of the named file, or as `chosen` holds them; differences beside a name go with that name."""
    override = given.get(group) or OmegaConf.create({})
    own = chosen if isinstance(chosen, DictConfig) else OmegaConf.create({"name": chosen})
    name = override.pop("name", None) or own.get("name")
    if name is None and "target" not in own:
        raise InputError(f"no {group} is chosen; one of {', '.join(available(group))}")
    content = own if name is None else _load(_find(group, str(name)))
    if name is not None and name == own.get("name"):
        content = OmegaConf.merge(content, {key: value for key, value in own.items() if key != "name"})
    return OmegaConf.merge(content, override)  # type: ignore[return-value]


def _find(group: str, name: str) -> Path:
    path = Path(name) if name.endswith(".yaml") else CONFIGS / group / f"{name}.yaml"
    if not path.is_file():
        known = available(group)
        raise InputError(f"unknown {group} '{name}'{nearest(name, known) or '; known: ' + ', '.join(known)}")
    return path


def _load(path: Path) -> DictConfig:
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
