"""The folder of a saved generator in diffusers' format: model, scheduler, parts, settings, card and checksums.

Folders are written atomically; nothing in them is unpickled.
"""

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.diffusion.solvers import dpm_scheduler
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.generators.card import model_card
from o2o_diffusion.generators.model import TransitionDenoiser, columns_of
from o2o_diffusion.settings import locate
from o2o_diffusion.storage import atomic_folder, damage, recover, save_json, sha256, write_manifest
from o2o_diffusion.types import TransitionSpec

MANIFEST = "sha256.json"
SETTINGS = "generator.json"
"""The settings of a saved generator; `target` is the class that loads the folder."""
PROVENANCE, OLD_PROVENANCE = "provenance.json", "facts.json"
"""The training record: datasets, rows, updates, quality. For information only."""
CARD = "README.md"
NEEDED = ("config.json", "diffusion_pytorch_model.safetensors", SETTINGS)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def find_folder(name: str | Path) -> Path:
    """The folder `name`, or a download of the hub repository `name` (owner/name); a folder takes precedence.

    Raises InputError if it is neither, or cannot be downloaded.
    """
    path = Path(name).expanduser()
    recover(path)
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(str(name)):
        near = nearest(path.name, [other.name for other in path.parent.glob("*") if other.is_dir()])
        raise InputError(f"{name} is not a saved generator: neither a folder nor an id on the hub (owner/name){near}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", CARD]))
    except Exception as error:  # hub and network errors have many types
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"no folder {name}, and no generator {name} could be downloaded from the hub ({reason})"
        ) from error


def load_generator(
    name: str | Path, spec: TransitionSpec | None = None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> Any:
    """Load the generator from the folder or hub id `name`, as an instance of the class that saved it.

    A class outside of this package must be trusted; see `settings.locate`. Raises InputError if there is no generator,
    a file is missing or altered, or `spec` has different columns.
    """
    folder = find_folder(name)
    target = str(read_settings(folder).get("target"))
    cls: Any = locate(target)
    if not hasattr(cls, "from_pretrained"):
        raise InputError(f"saved generator {folder}: {target} cannot be loaded from a folder")
    try:
        return cls.from_pretrained(folder, spec, seed=seed, device=device)
    except TypeError as error:  # settings of another version
        raise InputError(f"saved generator {folder} does not fit {target}: {error}") from error


def load_model(folder: Path, spec: TransitionSpec, condition: str) -> TransitionDenoiser:
    """Load the model from `folder`; raises InputError if it was altered or has different columns or condition."""
    check_manifest(folder)
    if "bounds" not in json.loads((folder / "config.json").read_text()):
        raise InputError(f"generator {folder} was saved by an earlier version, whose rows are laid out differently")
    model = TransitionDenoiser.from_pretrained(folder)
    saved, wanted = (_in_words(columns) for columns in (model.config["columns"], columns_of(spec)))
    if saved != wanted:
        raise InputError(f"generator {folder} was made for the columns {saved}; the task has {wanted}")
    if model.config["condition"] != condition:
        raise InputError(f"generator {folder} has the condition '{model.config['condition']}', expected '{condition}'")
    return model


def save_folder(
    folder: Path,
    model: TransitionDenoiser,
    parts: Mapping[str, nn.Module],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write everything to `folder`, replacing a generator already saved there; the checksums are written last.

    Raises InputError if the folder holds anything else or can't be written.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"a generator can't be saved to {folder}, which is not empty and not a saved generator")
    try:
        with atomic_folder(folder, replace=True) as temporary:
            model.save_pretrained(temporary)
            dpm_scheduler(model.sigma_min, model.sigma_max, model.rho, model.sigma_data).save_pretrained(temporary)
            for name, part in parts.items():
                save_file(part.state_dict(), temporary / f"{name}.safetensors")
            save_json(temporary / SETTINGS, settings)
            save_json(temporary / PROVENANCE, provenance or {})
            columns, pools = model.config["columns"], [int(rows) for rows in model.pool_rows]
            model_card(settings, provenance or {}, columns, pools).save(temporary / CARD)
            write_manifest(temporary, MANIFEST)
    except OSError as error:
        raise InputError(f"a generator can't be saved to {folder}: {error}") from error


def push(save: Callable[[Path], None], repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload the output of `save` to the hub repository `repo_id`, created if missing; returns its URL.

    Raises InputError if the id is malformed, or there is no network, token or permission.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"'{repo_id}' is not an id on the hub (owner/name)")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "generator"
        save(folder)
        try:
            hub = HfApi(token=token)
            address = hub.create_repo(repo_id, private=private, exist_ok=True)
            hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Generator of transitions")
        except Exception as error:  # hub and network errors have many types
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"the generator could not be pushed to {repo_id}: {reason}") from error
    return str(address)


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings of the generator saved in `folder`, with its `target`; version 0.1 settings are converted."""
    check_manifest(folder)
    settings = json.loads((folder / SETTINGS).read_text())
    if "solver" in settings:  # 0.1 mixed the sampling settings with the others, and its first folders had no restarts
        names = [field.name for field in fields(Sampling)]
        settings["sampling"] = {"restarts": 0} | {name: settings.pop(name) for name in names if name in settings}
    settings.pop("max_auc", None)  # the gate of 0.1, of a single number
    return settings


def read_provenance(folder: Path) -> dict[str, Any]:
    """Provenance of the generator saved in `folder`; empty if none was saved."""
    paths = [folder / name for name in (PROVENANCE, OLD_PROVENANCE) if (folder / name).is_file()]
    return json.loads(paths[0].read_text()) if paths else {}


def load_part(folder: Path, name: str, part: nn.Module) -> None:
    """Load the weights saved under `name` into `part`."""
    from safetensors.torch import load_file

    part.load_state_dict(load_file(folder / f"{name}.safetensors"))


def checksum(folder: Path) -> str:
    """sha256 of the manifest, which identifies a saved generator: it lists the checksums of all other files."""
    return sha256(folder / MANIFEST)


def check_manifest(folder: Path) -> None:
    """Raise InputError if `folder` is not a saved generator, or a file is missing or altered."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is not a saved generator: it has no {MANIFEST}")
    damaged = damage(folder, MANIFEST, NEEDED)
    if damaged:
        raise InputError(f"saved generator {folder}: {damaged}")


def _in_words(columns: Sequence[tuple[str, int]]) -> str:
    """Format columns in one line, such as "observations 11, actions 3"."""
    return ", ".join(f"{name} {width}" for name, width in columns)
