"""JSON of what callers pass: their mappings, and the numbers and arrays of NumPy."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from models.errors import InputError


def encode(value: object) -> bytes:
    """A value as JSON.

    Raises:
        InputError: It holds something that JSON has no form for.
    """
    return msgspec.json.encode(value, enc_hook=_plain)


def check_metadata(metadata: Mapping[str, Any] | None) -> None:
    """Refuses numbers that are not finite, which msgspec would send as null.

    Raises:
        InputError: There is one.
    """
    parts: list[Any] = [metadata]
    while parts:
        part = parts.pop()
        if isinstance(part, float | np.floating) and not math.isfinite(part):
            raise InputError(f"metadata holds {part}, which JSON has no form for; leave the field out")
        if isinstance(part, Mapping):
            parts += part.values()
        elif isinstance(part, list | tuple | np.ndarray):
            parts += list(part)


def _plain(value: object) -> object:
    """What msgspec knows in place of what it does not."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise InputError(f"a {type(value).__name__} cannot be sent as JSON; convert it to text or numbers")
