"""Names of collections and aliases, as Milvus allows them.

Milvus takes letters, digits and `_` only, ours also have `-` and `.`. The prefix says whose they are: a
database may hold collections of other programs, which are neither listed nor touched.
"""

from __future__ import annotations

import re

from serve.store.protocol import StoreError

_OURS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PREFIX = "kindred_"
_WRITTEN = {"_": "__", "-": "_d", ".": "_p"}
_READ = {written: plain for plain, written in _WRITTEN.items()}


def check_name(name: str, what: str = "collection name") -> str:
    """Returns a usable name.

    Raises:
        StoreError: It is not.
    """
    if not _OURS.fullmatch(name):
        raise StoreError(f"{name!r} is no {what}; use up to 64 letters, digits, '_', '-' or '.'")
    return name


def milvus_name(name: str) -> str:
    """The name inside Milvus; different names stay different."""
    return _PREFIX + re.sub(r"[_.-]", lambda found: _WRITTEN[found[0]], check_name(name))


def our_name(name: str) -> str | None:
    """The inverse of `milvus_name`; None for what is not ours."""
    if not name.startswith(_PREFIX):
        return None
    plain = re.sub(r"_[_dp]", lambda found: _READ[found[0]], name.removeprefix(_PREFIX))
    return plain if _OURS.fullmatch(plain) and milvus_name(plain) == name else None
