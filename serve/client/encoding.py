"""JSON of what callers pass: mappings, the numbers and arrays of NumPy, and items as blocks of lines."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from models.errors import InputError
from serve.schemas import NewItem

# Large enough for a request's overhead not to matter, small enough to be sent again.
BLOCK_BYTES = 8 * 2**20


def encode(value: object) -> bytes:
    """A value as JSON; InputError if it holds something that JSON has no form for."""
    return msgspec.json.encode(value, enc_hook=_plain)


def check_metadata(metadata: Mapping[str, Any] | None) -> None:
    """Refuses (InputError) numbers that are not finite, which msgspec would send as null."""
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


def blocks(items: Iterable[NewItem], most: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The items as lines of JSON, in blocks of about ``most`` bytes."""
    lines: list[bytes] = []
    size = 0
    for item in items:
        check_metadata(getattr(item, "metadata", None))
        line = encode(item)
        lines.append(line)
        size += len(line) + 1
        if size >= most:
            yield b"\n".join(lines)
            lines, size = [], 0
    if lines:
        yield b"\n".join(lines)
