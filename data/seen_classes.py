"""The classes that a model was trained on, as digests that do not reveal names."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence

from models.errors import InputError

# 48 bits: with 100,000 training classes, a new name looks seen with a probability of 4 in 10 billion.
BYTES = 6


def pack_classes(names: Iterable[str]) -> str:
    """Digests of class names as one string, eight characters per class."""
    return base64.b64encode(b"".join(sorted({_digest(name) for name in names}))).decode()


def seen_classes(packed: str, names: Sequence[str]) -> list[str]:
    """The ``names`` whose digests are in ``packed``, the result of :func:`pack_classes`.

    Raises:
        InputError: ``packed`` is damaged.
    """
    try:
        digests = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"the list of training classes is damaged ({error}); export the bundle again"
        ) from error
    seen = {digests[start : start + BYTES] for start in range(0, len(digests), BYTES)}
    return [name for name in names if _digest(name) in seen]


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:BYTES]
