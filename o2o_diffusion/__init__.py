"""Offline-to-online reinforcement learning with guided diffusion models of transitions."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from o2o_diffusion.integrations.augmenter import Augmenter
    from o2o_diffusion.types import Transitions, TransitionSpec

__version__ = "0.2.0"
__all__ = ["Augmenter", "TransitionSpec", "Transitions"]

_HOMES = {"Augmenter": "integrations.augmenter", "TransitionSpec": "types", "Transitions": "types"}


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
