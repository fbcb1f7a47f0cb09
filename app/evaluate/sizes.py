"""Sizes in bytes as people write them: 512MB, 2GB, 1.5GiB."""

import re

from models.errors import InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """Bytes; units are powers of 1024.

    Raises:
        InputError: not a positive number with an optional unit.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    try:
        size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise InputError(f"{text!r} is no size; write 512MB or 2GB")
    return size
