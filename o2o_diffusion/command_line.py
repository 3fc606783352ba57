"""Command-line parsing, help text and exit codes of the scripts."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from o2o_diffusion.errors import OneLineError, without_secrets
from o2o_diffusion.ranges import written
from o2o_diffusion.settings import CONFIGS, Settings, available, choose, compose, locate


def command_line(
    description: str,
    base: str | None,
    run: type,
    groups: Sequence[str],
    argv: Sequence[str],
    flags: dict[str, str] | None = None,
) -> tuple[Settings | None, argparse.Namespace]:
    """Parse a script's command line: `--<group> name`, `key=value` overrides, `--help` with every setting.

    `flags` adds options that take an optional value (`--resume`). Returns None instead of settings if one is given:
    the settings are then those of a run, with the overrides in the second result.
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
    named = [f"{group}={getattr(arguments, group)}" for group in choices if getattr(arguments, group) is not None]
    arguments.overrides = [*named, *arguments.overrides]
    if any(getattr(arguments, flag) is not None for flag in flags or {}):
        return None, arguments
    return compose(CONFIGS / base if base else None, run, groups, arguments.overrides), arguments


def main(function: Callable[[list[str]], int | None]) -> None:
    """Run a script and exit: errors print one line to stderr.

    The code is 2 for a user error, 1 for a fault of the run, the disk or the memory, and 130 for Ctrl-C.
    """
    try:
        sys.exit(function(sys.argv[1:]))
    except OneLineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (MemoryError, OSError) as error:
        print(f"error: {without_secrets(str(error)) or 'out of memory'}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def describe(cls: type, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(name, default, help text with range) of every setting of a Config class; nested settings have dotted names."""
    rows, hints = [], get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        default = field.default if field.default is not MISSING else field.default_factory()  # type: ignore[misc]
        meaning, *bounds = getattr(hints[field.name], "__metadata__", ("",))
        if is_dataclass(default) and not isinstance(default, type):
            rows += describe(type(default), f"{prefix}{field.name}.")
        else:
            rows.append((prefix + field.name, default, f"{meaning} {written(bounds)}".strip()))
    return rows


def _help(base: str | None, run: type, groups: Sequence[str], argv: Sequence[str]) -> str:
    """List every setting with its value from the base file and the components selected in `argv`."""
    choices = choose(CONFIGS / base if base else None, groups, _overrides(groups, argv))
    lines = ["settings (setting=value; default; meaning [range]):"]
    own = OmegaConf.merge(*(OmegaConf.create(layer) for _, layer in choices.layers))
    sections: list[tuple[str, Any, Any]] = [("", run, own)]
    for group, choice in choices.groups.items():
        sections.append((f"{group}.", locate(str(choice.settings.target)), choice.settings))
    for prefix, cls, settings in sections:
        if prefix:
            name = choices.groups[prefix[:-1]].name or cls.__name__
            lines += ["", f"{prefix[:-1]} = {name} ({cls.__doc__.splitlines()[0] if cls.__doc__ else ''})"]
        values = OmegaConf.to_container(settings)
        for setting, default, meaning in describe(cls.Config if prefix else cls, prefix):
            value = values.get(setting.removeprefix(prefix), default)  # type: ignore[union-attr]
            lines.append(f"  {setting}={_shown(value)}".ljust(48) + f" {meaning}")
    return "\n".join(lines)


def _overrides(groups: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The overrides in `argv`, with --group NAME rewritten as group=NAME."""
    choosing = [f"--{group}" for group in (*groups, "experiment")]
    named = [f"{word[2:]}={name}" for word, name in pairwise(argv) if word in choosing]
    return named + [word for word in argv if "=" in word and not word.startswith("-")]


def _shown(value: Any) -> str:
    """Format `value` as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{...}" if isinstance(value, dict) else str(list(value) if isinstance(value, tuple) else value)
