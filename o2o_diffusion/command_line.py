"""A script's command line: parsing, help, exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import CONFIGS, Settings, available, compose, find, group_settings, load, locate


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
    chosen: Any = load(CONFIGS / base) if base else OmegaConf.create()
    for experiment in _named("experiment", argv):
        chosen = OmegaConf.merge(chosen, load(find("experiment", experiment)))
    lines = ["settings (setting=value; default; meaning):"]
    sections, differing = [("", run, "")], {"": chosen}
    for group in groups:
        own = chosen[group]
        name = [str(own.name if isinstance(own, DictConfig) else own), *_named(group, argv)][-1]
        content = group_settings(group, own, OmegaConf.create({group: {"name": name}}))
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
