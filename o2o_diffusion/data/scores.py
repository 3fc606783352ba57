"""Normalized scores: 0 for a random policy, 100 for an expert."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

D4RL = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
    "AdroitHandPen": (96.262799, 3076.8331017826877),
    "AdroitHandHammer": (-274.856578, 12794.134825156867),
    "AdroitHandRelocate": (-6.425911, 4233.877797728884),
    "AdroitHandDoor": (-56.512833, 2880.5693087298737),
    "FrankaKitchen": (0.0, 4.0),
}
"""Returns of a random policy and an expert (Farama-Foundation/D4RL, d4rl/infos.py), by environment without version.

Mazes are omitted: their score is the success rate.
"""


@dataclass(frozen=True)
class ReferenceScores:
    """The raw returns that score 0 and 100, and their source."""

    minimum: float
    maximum: float
    source: str

    def normalize(self, returns: np.ndarray) -> np.ndarray:
        """Convert raw undiscounted returns of whole episodes to scores."""
        return 100 * (returns - self.minimum) / (self.maximum - self.minimum)


def reference_scores(environment_id: str | None, metadata: Mapping[str, Any] | None = None) -> ReferenceScores | None:
    """Reference scores from a Minari dataset's metadata if present, else from D4RL's table, else None.

    D4RL's table was measured with older physics, so scores based on it are labeled approximate.
    """
    low, high = (metadata or {}).get("ref_min_score"), (metadata or {}).get("ref_max_score")
    if low is not None and high is not None and high > low:
        return ReferenceScores(float(low), float(high), "Minari metadata")
    family, _, version = re.sub(r"-(v\d+)$", r" \1", environment_id or "").partition(" ")
    if family not in D4RL:
        return None
    return ReferenceScores(*D4RL[family], source=f"D4RL table, {version} physics: approximate")
