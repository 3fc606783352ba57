"""The settings of a run as its checkpoints know them: settings.yaml is written once and must not change silently."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from o2o_diffusion.errors import InputError
from o2o_diffusion.settings import MODULES, load


@dataclass(frozen=True)
class Record:
    """The text of settings.yaml as written, and the overrides of all resumptions so far, in order."""

    text: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Identifies the settings in a checkpoint's manifest."""
        return hashlib.sha256(json.dumps(self.state()).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """The record as plain data, for a checkpoint."""
        return {"text": self.text, "overrides": list(self.overrides)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Record":
        """The record saved in a checkpoint."""
        return cls(str(state["text"]), tuple(state["overrides"]))

    def continued(self, file: Path, overrides: Sequence[str]) -> "Record":
        """The record with more `overrides`; raises InputError if `file` has other values than those that name them."""
        kept = [override for override in overrides if not override.startswith(f"{MODULES}=")]
        record = Record(self.text, (*self.overrides, *kept))
        named = [override.partition("=")[0] for override in record.overrides]
        changed = [
            (name, old, new)
            for name, old, new in differences(OmegaConf.create(self.text), load(file))
            if not any(name == setting or name.startswith(f"{setting}.") for setting in named)
        ]
        if changed:
            shown = ", ".join(f"{name} is {new}, was {old}" for name, old, new in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(
                f"{file} was changed since the run began: {shown}{more}; undo that, or name what is meant to change"
                f" behind --resume {file.parent}: {changed[0][0]}={changed[0][2]}"
            )
        return record


def differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """(name, old, new) of every setting that differs; one that is missing is None."""
    olds, news = (dict(_flat(OmegaConf.to_container(node, resolve=False))) for node in (old, new))
    return [(n, olds.get(n), news.get(n)) for n in dict.fromkeys([*olds, *news]) if olds.get(n) != news.get(n)]


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
