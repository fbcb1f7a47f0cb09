"""What stands beside a bundle's weights in other formats, and opening it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.errors import InputError
from models.inference import OnnxRunner, Runner, Unavailable


def derived_fingerprint(original: str, content: bytes) -> str:
    """The fingerprint of a model whose vectors are no longer the original's, 16 hexadecimal digits."""
    return hashlib.sha256(original.encode() + hashlib.sha256(content).digest()).hexdigest()[:16]


def open_export(
    file: Path, exports: Mapping[str, Mapping[str, Any]], device: torch.device
) -> tuple[Runner, str]:
    """Open an ONNX file of a bundle.

    Args:
        file: in the bundle's folder.
        exports: the bundle's records, by file name.
        device: where it runs.

    Returns:
        What runs it, and the fingerprint of the vectors that it gives.

    Raises:
        InputError: the file is missing, is none of the bundle's, is damaged, or cannot be run here.
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
