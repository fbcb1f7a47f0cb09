"""Ids as Milvus primary keys: one text column for strings and integers, without collisions and in order.

A string gets the prefix `s`, an integer `i` and 16 hexadecimal digits of its value plus 2⁶³: both kinds sort
as the ids themselves do, so that ranges over ids stay ranges over keys.
"""

from __future__ import annotations

from serve.store.protocol import ItemId, StoreError

MOST_BYTES = 65_535
"""Milvus's limit for a text, in UTF-8."""

_SHIFT = 2**63


def key_of(item_id: ItemId) -> str:
    """The key of a checked id.

    Raises:
        StoreError: The id is longer than Milvus takes.
    """
    if isinstance(item_id, int):
        return f"i{item_id + _SHIFT:016x}"
    key = "s" + item_id
    if len(key) > MOST_BYTES // 4 and len(key.encode()) > MOST_BYTES:
        raise StoreError(f"The id {item_id[:40]!r}… is longer than the {MOST_BYTES - 1:,} bytes Milvus takes")
    return key


def id_of(key: str) -> ItemId:
    """The inverse of `key_of`."""
    return key[1:] if key[0] == "s" else int(key[1:], 16) - _SHIFT
