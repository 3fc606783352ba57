"""Keys: digests of the settings that change a run's results."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from o2o_diffusion.settings import CONFIGS, compose
from o2o_diffusion.training.folders import GROUPS
from o2o_diffusion.training.loop import Loop

BOOKKEEPING = (
    "seed", "num_seeds", "output", "threads", "logger", "log_interval", "checkpoint_interval", "keep_checkpoints",
)  # fmt: skip
"""Settings that don't change a run's results, and the seeds."""


@cache
def key_of(settings: tuple[str, ...]) -> str:
    """Digest of the settings of scripts/finetune.py that change results; raises InputError for an unknown setting.

    Only differences from the defaults of the classes count, so that a new setting leaves the keys as they are; a
    changed default raises `NUMBERS`.
    """
    composed = compose(CONFIGS / "finetune.yaml", Loop.Config, GROUPS, settings)
    configs = {group: component.target.Config for group, component in composed.components.items()}  # type: ignore
    own = {name: value for name, value in composed.plain.items() if name not in (*GROUPS, *BOOKKEEPING)}
    changed = changes(own, defaults(Loop.Config))
    for group in (group for group in GROUPS if group not in BOOKKEEPING):
        changed[group] = changes(composed.plain[group], defaults(configs[group]))
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def defaults(config: type) -> dict[str, Any]:
    """The defaults of a dataclass of settings as plain data."""
    return OmegaConf.to_container(OmegaConf.structured(config))  # pyright: ignore[reportReturnType]


def changes(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The `values` that differ from their `defaults`, also of nested settings."""
    changed = {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
    nested = {name for name, value in changed.items() if isinstance(value, dict) and defaults.get(name) is not None}
    return {name: changes(value, defaults[name]) if name in nested else value for name, value in changed.items()}
