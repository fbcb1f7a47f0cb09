"""Exported files beside a bundle's weights: their fingerprints, and opening them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.errors import InputError
from models.inference import OnnxRunner, Runner, Unavailable


def derived_fingerprint(original: str, content: bytes) -> str:
    """The fingerprint, 16 hexadecimal digits, of an export whose vectors differ from the original's."""
    return hashlib.sha256(original.encode() + hashlib.sha256(content).digest()).hexdigest()[:16]


def open_export(
    file: Path, exports: Mapping[str, Mapping[str, Any]], device: torch.device
) -> tuple[Runner, str]:
    """Open an ONNX file of a bundle.

    Args:
        file: in the bundle's folder.
        exports: the bundle's records, by file name.
        device: to run on.

    Returns:
        The runner, and the fingerprint of its vectors.

    Raises:
        InputError: the file is missing, not the bundle's, damaged, or cannot run here.
    """
    record = exports.get(file.name)
    if record is None:
        raise InputError(f"{file}: its bundle does not know this file; kindred export --onnx makes one")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); export it again") from error
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise InputError(f"{file}: does not match its checksum in the bundle; export it again")
    try:
        return OnnxRunner(content, device), str(record["fingerprint"])
    except Unavailable as error:
        raise InputError(f"{file}: {error}") from error
