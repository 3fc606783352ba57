"""The folder of a saved generator in diffusers' format: model, scheduler, parts, settings, card, and checksums of all.

A folder is complete or absent: it is written under a hidden name and renamed. Nothing in it is unpickled.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from o2o_diffusion.diffusion.solvers import dpm_scheduler
from o2o_diffusion.errors import InputError, nearest
from o2o_diffusion.generators.card import model_card
from o2o_diffusion.generators.model import TransitionDenoiser, layout
from o2o_diffusion.settings import PACKAGE, locate
from o2o_diffusion.types import TransitionSpec

MANIFEST = "sha256.json"
SETTINGS = "generator.json"
"""Holds the settings of a saved generator; its `target` is the class that loads the folder."""
FACTS = "facts.json"
"""What is known of its making: datasets, rows, updates, quality. Nothing depends on it."""
CARD = "README.md"
NEEDED = ("config.json", "diffusion_pytorch_model.safetensors", SETTINGS)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def find_folder(name: str | Path) -> Path:
    """The folder `name`, or a copy of what the hub has under the id `name` (owner/name); a folder wins.

    Raises InputError when it is neither, or cannot be downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not HUB_ID.fullmatch(str(name)):
        near = nearest(path.name, [other.name for other in path.parent.glob("*") if other.is_dir()])
        raise InputError(f"{name} is not a saved generator: neither a folder nor an id on the hub (owner/name){near}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", CARD]))
    except Exception as error:  # the hub and the way to it fail in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"no folder {name}, and no generator {name} could be had from the hub ({reason})") from error


def load_generator(
    name: str | Path, spec: TransitionSpec | None = None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> Any:
    """The generator in the folder `name`, or under that id on the hub, as an object of the class that saved it.

    A folder may name a class of any installed package, what is downloaded only one of this package. Raises InputError
    when there is none, a file is missing or was altered, or `spec` has other columns.
    """
    folder = find_folder(name)
    target = str(read_settings(folder).get("target"))
    if not Path(name).expanduser().is_dir() and not target.startswith(f"{PACKAGE.name}."):
        raise InputError(f"generator {name} is a {target}; only classes of {PACKAGE.name} are run from the hub")
    cls: Any = locate(target)
    if not hasattr(cls, "from_pretrained"):
        raise InputError(f"saved generator {folder}: {target} cannot be loaded from a folder")
    try:
        return cls.from_pretrained(folder, spec, seed=seed, device=device)
    except TypeError as error:  # settings of another version
        raise InputError(f"saved generator {folder} does not fit {target}: {error}") from error


def load_model(folder: Path, spec: TransitionSpec, condition: str) -> TransitionDenoiser:
    """The model saved in `folder`; InputError when it was altered, has other columns or is conditioned otherwise."""
    check_manifest(folder)
    model = TransitionDenoiser.from_pretrained(folder)
    saved, wanted = (_in_words(columns) for columns in (model.config["columns"], layout(spec)))
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
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write everything to `folder`, in place of the generator that may lie there; the checksums come last.

    Raises InputError when the folder holds anything else, or cannot be written.
    """
    from safetensors.torch import save_file

    with _replacing(Path(folder).absolute()) as beside:
        model.save_pretrained(beside)
        dpm_scheduler(model.sigma_min, model.sigma_max, model.rho, model.sigma_data).save_pretrained(beside)
        for name, part in parts.items():
            save_file(part.state_dict(), beside / f"{name}.safetensors")
        _write_json(beside / SETTINGS, settings)
        _write_json(beside / FACTS, facts or {})
        columns, pools = model.config["columns"], [int(rows) for rows in model.pool_rows]
        model_card(settings, facts or {}, columns, pools).save(beside / CARD)
        digests = {path.name: _sha256(path) for path in sorted(beside.iterdir()) if path.is_file()}
        _write_json(beside / MANIFEST, digests)


def push(save: Callable[[Path], None], repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload what `save` writes to the hub's repository `repo_id`, made where it is missing; returns its address.

    Raises InputError when the id is malformed, or there is no network, token or permission.
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
        except Exception as error:  # the hub and the way to it fail in many ways
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"the generator could not be pushed to {repo_id}: {reason}") from error
    return str(address)


def read_settings(folder: Path) -> dict[str, Any]:
    """Settings of the generator saved in `folder`, with its `target`."""
    check_manifest(folder)
    return json.loads((folder / SETTINGS).read_text())


def read_facts(folder: Path) -> dict[str, Any]:
    """What is known of the making of the generator saved in `folder`; empty where nothing was saved."""
    return json.loads((folder / FACTS).read_text()) if (folder / FACTS).is_file() else {}


def load_part(folder: Path, name: str, part: nn.Module) -> None:
    """Fill `part` with what was saved under `name`."""
    from safetensors.torch import load_file

    part.load_state_dict(load_file(folder / f"{name}.safetensors"))


def checksum(folder: Path) -> str:
    """sha256 by which a saved generator is known: of its manifest, which holds those of all other files."""
    return _sha256(folder / MANIFEST)


def check_manifest(folder: Path) -> None:
    """Raise InputError when `folder` is no saved generator, or a file is missing or was altered."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is not a saved generator: it has no {MANIFEST}")
    try:
        digests = dict(json.loads((folder / MANIFEST).read_text()))
    except (TypeError, ValueError) as error:
        raise InputError(f"saved generator {folder}: {MANIFEST} was altered and cannot be read ({error})") from error
    unlisted = [name for name in NEEDED if name not in digests]
    if unlisted:
        raise InputError(f"saved generator {folder}: {MANIFEST} does not list {unlisted[0]}")
    for name, digest in digests.items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise InputError(f"saved generator {folder}: {name} is missing")
        if _sha256(path) != digest:
            raise InputError(f"saved generator {folder}: {name} was altered since it was saved (sha256 differs)")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the name of `folder` at the end; nothing stays behind on failure."""
    if folder.exists() and not (folder / MANIFEST).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"a generator can't be saved to {folder}, which is not empty and no saved generator")
    beside = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    outgoing = beside.with_name(f"{beside.name}-old")
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            folder.rename(outgoing)
        beside.rename(folder)
    except OSError as error:
        raise InputError(f"a generator can't be saved to {folder}: {error}") from error
    finally:
        for left in (beside, outgoing):
            shutil.rmtree(left, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_words(columns: Sequence[tuple[str, int]]) -> str:
    """Columns in one line, as "observations 11, actions 3"."""
    return ", ".join(f"{name} {width}" for name, width in columns)
