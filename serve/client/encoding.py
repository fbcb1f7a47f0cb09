"""JSON of what callers pass: their mappings, and the numbers and arrays of NumPy."""

from collections.abc import Mapping

import msgspec
import numpy as np

from models.errors import InputError


def encode(value: object) -> bytes:
    """A value as JSON.

    Raises:
        InputError: It holds something that JSON has no form for.
    """
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: object) -> object:
    """What msgspec knows in place of what it does not."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise InputError(f"a {type(value).__name__} cannot be sent as JSON; convert it to text or numbers")
