"""The files of a bundle: names, reading, writing, and the fingerprint."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.card import model_card
from models.errors import InputError
from models.files import replacing
from models.network import Architecture
from models.preprocess import Preprocess

FORMAT = 1
WEIGHTS = "model.safetensors"
MANIFEST = "bundle.json"
CARD = "README.md"


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's description.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no bundle here ({MANIFEST} is missing); kindred export makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); export the bundle again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        remedy = "update Kindred" if isinstance(found, int) and found > FORMAT else "export the bundle again"
        raise InputError(f"{path}: format {found}, this program reads {FORMAT}; {remedy}")
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the description, and the model card made from it unless a person has written one."""
    with replacing(folder / MANIFEST) as fresh:
        fresh.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    card = model_card(manifest, folder / CARD)
    if card is not None:
        with replacing(folder / CARD) as fresh:
            fresh.write_text(card, encoding="utf-8")


def write_bundle(folder: Path, state: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Path:
    """Write a bundle's state dict and description; it replaces an existing one only once it is complete.

    Returns:
        The folder, links resolved.

    Raises:
        InputError: the folder exists and is not a bundle, or cannot be written.
    """
    if folder.is_symlink():
        folder = folder.resolve()  # the link stays
    if folder.is_file() or (folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is no bundle; choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            # Copies, because safetensors refuses tensors that share memory (tied layers).
            weights = {
                key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()
            }
            save_file(weights, fresh / WEIGHTS, {"format": "pt"})
            (fresh / WEIGHTS).chmod(0o644)  # a service may run as another user
            write_manifest(fresh, manifest)
            fresh.chmod(0o755)
            if folder.exists():
                retired = fresh.with_name(fresh.name + "-old")
                folder.rename(retired)
                fresh.rename(folder)
                shutil.rmtree(retired)
            else:
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return folder


def fingerprint_of(weights: Mapping[str, Tensor], architecture: Architecture, preprocess: Preprocess) -> str:
    """16 hexadecimal digits of a SHA-256 over everything that determines an image's embedding."""
    settings = {"architecture": architecture.to_dict(), "preprocess": preprocess.fingerprinted()}
    if "tta" in settings["architecture"]:  # the first bundles called it views, and stay valid
        settings["architecture"]["views"] = settings["architecture"].pop("tta")
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def derived_fingerprint(original: str, content: bytes) -> str:
    """The fingerprint, 16 hexadecimal digits, of an export whose vectors differ from the original's."""
    return hashlib.sha256(original.encode() + hashlib.sha256(content).digest()).hexdigest()[:16]
