"""Trained policies as small safetensors files: a tanh-Gaussian (SAC) actor, run in numpy, one observation at a time.

Tensors: trunk.k.weight [out, in] and trunk.k.bias of hidden layer k, mean.*, log_std.*, and optionally
observation_mean and observation_std; float16, to save space. Metadata is one JSON object: environment, hidden (layer
widths), activation ("relu"), env_steps (environment steps of training), command (training command).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.storage import atomic_file

FOLDER = Path(__file__).parent / "policies"
"""Folder of the packaged policies, named by relative path without suffix, e.g. "halfcheetah/step_52473"."""


class SavedPolicy:
    """tanh(mean + exp(clip(log_std, -20, 2)) * noise) with ReLU hidden layers; without noise, tanh(mean)."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any], random: np.random.Generator | None
    ):
        """`random` is the source of noise, None for deterministic actions. Raises InputError if tensors are missing."""
        self.metadata = dict(metadata)
        self.random = random
        tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("trunk.")})
        try:
            self.trunk = [(tensors[f"trunk.{k}.weight"], tensors[f"trunk.{k}.bias"]) for k in numbers]
            self.mean = tensors["mean.weight"], tensors["mean.bias"]
            self.log_std = tensors["log_std.weight"], tensors["log_std.bias"]
        except KeyError as error:
            raise InputError(f"a policy file needs the tensor {error}, found {sorted(tensors)}") from error
        if self.metadata.get("activation", "relu") != "relu":
            raise InputError(f"a saved policy's activation is {self.metadata['activation']!r}, expected 'relu'")
        self.shift = tensors.get("observation_mean", np.float32(0))
        self.scale = tensors.get("observation_std", np.float32(1))

    @classmethod
    def load(cls, path: Path | str, random: np.random.Generator | None = None) -> SavedPolicy:
        """Load a policy from a file; raises InputError if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                metadata = json.loads((file.metadata() or {}).get("policy", "{}"))
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"policy {path} cannot be read: {error}") from error
        return cls(tensors, metadata, random)

    @property
    def observation_dim(self) -> int:
        """Length of an observation."""
        return self.trunk[0][0].shape[1] if self.trunk else self.mean[0].shape[1]

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return len(self.mean[1])

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """[action_dim] action in [-1, 1] for one observation [observation_dim]."""
        hidden = ((observation - self.shift) / self.scale).astype(np.float32)
        for weight, bias in self.trunk:
            hidden = np.maximum(weight @ hidden + bias, 0)
        mean = self.mean[0] @ hidden + self.mean[1]
        if self.random is None:
            return np.tanh(mean)
        log_std = (self.log_std[0] @ hidden + self.log_std[1]).clip(-20, 2)
        return np.tanh(mean + np.exp(log_std) * self.random.standard_normal(len(mean), dtype=np.float32))


def save_policy(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write a policy file from numpy arrays or torch tensors, as float16.

    Raises TypeError if `metadata` is not JSON, OSError if `path` can't be written.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(np.asarray(tensor), dtype=np.float16) for name, tensor in tensors.items()}
    with atomic_file(Path(path)) as temporary:
        save_file(arrays, temporary, metadata={"policy": json.dumps(dict(metadata))})


def packaged_policy(name: str) -> Path:
    """Path of a packaged policy; raises InputError if it is unknown."""
    path = FOLDER / f"{name}.safetensors"
    known = [file.relative_to(FOLDER).with_suffix("").as_posix() for file in sorted(FOLDER.glob("**/*.safetensors"))]
    if name not in known:
        raise InputError(
            f"unknown behavior {name!r}{nearest(name, ['random', 'waypoints', 'balance', 'reach', *known])}"
        )
    return path
