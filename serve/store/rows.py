"""Items as rows of the database: checked on the way in, rebuilt on the way out."""

from __future__ import annotations

import itertools
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.store.filters import Condition
from serve.store.protocol import Item, ItemId, ItemMissing, StoreError, Vectors
from serve.store.vectors import unit_rows

C = TypeVar("C")
Keys = NDArray[np.int64]

# Falling to 1; the largest stays below 999 parameters, the least that any build of SQLite allows.
_ROWS_PER_STATEMENT = (240, 30, 5, 1)

NO_KEYS: Keys = np.empty(0, np.int64)

# The longest text id that a path of the API takes.
MOST_ID_CHARACTERS = 1024
# Metadata that is nested more deeply could be stored, but neither read back nor answered: parsers of JSON
# have limits of their own. The size is what Milvus takes, so that every store takes the same items.
MOST_NESTED = 32
MOST_METADATA_BYTES = 65_536

_log = logging.getLogger(__name__)
_metadata_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked items, each id once, ready to be written."""

    ids: list[ItemId]
    labels: list[str | None]
    metadata: list[str | None]
    thumbnails: list[bytes | None]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Added:
    """Rows that come: keys, vectors, and of each its id, label and metadata as JSON text."""

    keys: Keys
    vectors: Vectors
    records: list[tuple[ItemId, str | None, str | None]]


@dataclass(slots=True)
class Changes:
    """What a transaction does to the index: keys that die, that come, and whose label or metadata changes."""

    began: int
    sequence: int
    removed: list[Keys] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    edited: list[int] = field(default_factory=list)

    def copy(self) -> Changes:
        """The changes so far, to come back to."""
        return Changes(self.began, self.sequence, list(self.removed), list(self.added), list(self.edited))

    def restore(self, earlier: Changes) -> None:
        """Forgets what came after `earlier`."""
        self.sequence, self.removed = earlier.sequence, earlier.removed
        self.added, self.edited = earlier.added, earlier.edited


def check_id(value: Any) -> ItemId:
    """Returns the id if it is text or a 64-bit integer.

    Raises:
        StoreError: It is not.
    """
    if isinstance(value, str):
        if value and "\0" not in value and _is_unicode(value):
            return value
    elif isinstance(value, int | np.integer) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return int(value)
    raise StoreError(f"{str(value)[:40]!r} is no id; use text without NUL, or a 64-bit integer")


def naming_the_item(check: Callable[[Sequence[Item]], C], items: Sequence[Item], first: int = 0) -> C:
    """The result of a check of items; its error names the first item at fault.

    Args:
        check: Checks some items.
        items: All of them.
        first: Position of the first of them among what the caller was given.

    Raises:
        StoreError: What `check` raised of one item alone, with its id and its `position`.
    """
    try:
        return check(items)
    except StoreError:
        for position, item in enumerate(items, first):  # again one by one, to say which it was
            try:
                check([item])
            except StoreError as error:
                named = type(error)(f"item {item.id!r:.42}: {error}")
                named.position = position
                raise named from None
        raise


def check_batch(items: Sequence[Item], dim: int) -> Batch:
    """Checks items before anything of them is written; of equal ids the last one stays."""
    last: dict[ItemId, Item] = {}
    for item in reversed(items):
        last.setdefault(_check_new_id(item.id), item)
    ids, items = list(reversed(last)), list(reversed(last.values()))
    if any(item.vector is None for item in items):
        raise StoreError("An item has no vector; every item needs one")
    return Batch(
        ids=ids,
        labels=[check_label(item.label) for item in items],
        metadata=[metadata_text(item.metadata) for item in items],
        thumbnails=[check_thumbnail(item.thumbnail) for item in items],
        vectors=unit_rows([item.vector for item in items], dim),
    )


def _check_new_id(value: Any) -> ItemId:
    item_id = check_id(value)
    if isinstance(item_id, str) and len(item_id) > MOST_ID_CHARACTERS:
        raise StoreError(f"The id has {len(item_id)} characters; use at most {MOST_ID_CHARACTERS}")
    return item_id


def check_label(value: Any) -> str | None:
    """Returns the label if it is text or None."""
    if value is None or (isinstance(value, str) and "\0" not in value and _is_unicode(value)):
        return value
    raise StoreError(f"The label {str(value)[:40]!r} is no text; use text without NUL, or none")


def check_thumbnail(value: Any) -> bytes | None:
    """Returns the thumbnail if it is bytes or None."""
    if value is None or isinstance(value, bytes):
        return value
    raise StoreError(f"A thumbnail is a {type(value).__name__}; give an encoded image's bytes")


def metadata_text(value: Mapping[str, Any] | None) -> str | None:
    """Metadata as JSON text, None where there is none. All metadata that is stored comes through here.

    Raises:
        StoreError: It is not plain JSON, too large, or nested too deeply.
    """
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise StoreError("Metadata is an object with named fields, such as {'price': 3}")
    if _is_deep(value):
        raise StoreError(f"Metadata is nested more than {MOST_NESTED} deep; flatten it")
    try:
        text = _metadata_json(value)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise StoreError(f"Metadata is not plain JSON: {error}") from None
    if size > MOST_METADATA_BYTES:
        raise StoreError(f"Metadata of {size:,} bytes; an item has at most {MOST_METADATA_BYTES:,}")
    return text


def metadata_of(text: str | None) -> dict[str, Any]:
    """Metadata from its JSON text; empty, with a warning in the log, where the text cannot be used.

    Nothing is stored today that could not be read, but what an earlier version stored must not take the items
    beside it down.
    """
    if text is None:
        return {}
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])
        # A text with few brackets cannot be deep, and counting them is quick.
        if text.count("{") + text.count("[") <= MOST_NESTED or not _is_deep(value):
            return value
        reason = f"nested more than {MOST_NESTED} deep"
    except (msgspec.DecodeError, RecursionError) as error:
        reason = str(error)
    _log.warning("metadata that begins with %.42r is shown empty: %s", text, reason)
    return {}


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396) applied: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_NESTED):
        parts = itertools.chain.from_iterable(
            one.values() if isinstance(one, Mapping) else one for one in level
        )
        level = [part for part in parts if isinstance(part, Mapping | list | tuple)]
        if not level:
            return False
    return True


def insert(batch: Batch, connection: sqlite3.Connection, changes: Changes) -> int:
    """Writes a batch under new keys and removes what had its ids."""
    remove(connection, keys_of_ids(connection, batch.ids), changes, count_write=False)
    first = changes.sequence + 1
    keys = np.arange(first, first + len(batch.ids), dtype=np.int64)
    changes.sequence += len(keys)
    numbers = keys.tolist()
    size = 4 * batch.vectors.shape[1]
    joined = batch.vectors.astype("<f4", copy=False).tobytes()
    vectors = (joined[start : start + size] for start in range(0, len(joined), size))
    records = list(zip(batch.ids, batch.labels, batch.metadata, strict=True))
    _insert_rows(connection, "items", [(key, *record) for key, record in zip(numbers, records, strict=True)])
    _insert_rows(connection, "vectors", list(zip(numbers, vectors, strict=True)))
    images = zip(numbers, batch.thumbnails, strict=True)
    _insert_rows(connection, "thumbnails", [(key, image) for key, image in images if image is not None])
    changes.added.append(Added(keys, batch.vectors, records))
    return len(keys)


def _insert_rows(connection: sqlite3.Connection, table: str, values: list[tuple[Any, ...]]) -> None:
    """Inserts many rows with each statement.

    Each step of a statement gives the interpreter's lock away and has to win it back. With `executemany` that
    is a step for each row: minutes instead of a second where dozens of threads search at the same time.
    """
    start = 0
    for size in _ROWS_PER_STATEMENT:
        places = f"({', '.join('?' * len(values[0]))})" if values else ""
        statement = f"INSERT INTO {table} VALUES {', '.join([places] * size)}"  # noqa: S608
        while len(values) - start >= size:
            flat = itertools.chain.from_iterable(values[start : start + size])
            connection.execute(statement, tuple(flat))
            start += size


def remove(connection: sqlite3.Connection, keys: Keys, changes: Changes, *, count_write: bool = True) -> int:
    """Removes rows by key."""
    if count_write:
        changes.sequence += 1
    if len(keys):
        listed = json_text(keys.tolist())
        for table in ("items", "vectors", "thumbnails", "edits"):
            connection.execute(
                f"DELETE FROM {table} WHERE key IN (SELECT value FROM json_each(?))",  # noqa: S608
                (listed,),
            )
        changes.removed.append(keys)
    return len(keys)


def edit(connection: sqlite3.Connection, item_id: ItemId, patch: Mapping[str, Any], changes: Changes) -> None:
    """Changes label and metadata of one item; see `Store.update`."""
    unknown = set(patch) - {"label", "metadata"}
    if unknown:
        raise StoreError(f"Cannot change {sorted(unknown)[0]!r} of an item; change label or metadata")
    found = connection.execute("SELECT key, metadata FROM items WHERE id = ?", (item_id,)).fetchone()
    if found is None:
        raise ItemMissing(f"There is no item {item_id!r}")
    if "label" in patch:
        connection.execute("UPDATE items SET label = ? WHERE id = ?", (check_label(patch["label"]), item_id))
    if metadata_text(patch.get("metadata")) is not None:
        metadata = metadata_text(merged(metadata_of(found[1]), patch["metadata"]))
        connection.execute("UPDATE items SET metadata = ? WHERE id = ?", (metadata, item_id))
    changes.sequence += 1
    key = found[0]
    connection.execute("INSERT OR REPLACE INTO edits VALUES (?, ?)", (key, changes.sequence))
    changes.edited.append(key)


def keys_of_ids(connection: sqlite3.Connection, ids: Iterable[ItemId]) -> Keys:
    """Keys of those ids that exist, ascending."""
    listed = json_text(list(ids))
    return keys_where(connection, Condition("id IN (SELECT value FROM json_each(?))", (listed,)))


def keys_where(connection: sqlite3.Connection, condition: Condition, above: int | None = None) -> Keys:
    """Keys (above a bound, if given) whose rows fulfil a condition, ascending.

    SQLite joins them into one text, so that a million keys take one step without the interpreter's lock.
    """
    # Few rows are above a bound: go by key and not by an index on a field.
    source = "items WHERE" if above is None else f"items NOT INDEXED WHERE key > {above:d} AND"
    text = connection.execute(
        f"SELECT group_concat(key) FROM {source} ({condition.sql})",  # noqa: S608
        condition.parameters,
    ).fetchone()[0]
    if text is None:
        return NO_KEYS
    return np.sort(np.fromstring(text, dtype=np.int64, sep=","))


def sequence(connection: sqlite3.Connection) -> int:
    """Number of the last write."""
    return int(connection.execute("SELECT value FROM properties WHERE name = 'sequence'").fetchone()[0])


def edited_after(connection: sqlite3.Connection, number: int) -> Keys:
    """Keys of items whose label or metadata a write after that number changed, ascending."""
    text = connection.execute("SELECT group_concat(key) FROM edits WHERE sequence > ?", (number,)).fetchone()[
        0
    ]
    return NO_KEYS if text is None else np.sort(np.fromstring(text, dtype=np.int64, sep=","))


def read_items(
    connection: sqlite3.Connection, condition: Condition, *, with_vectors: bool, limit: int = -1
) -> list[tuple[int, Item]]:
    """Keys and items that fulfil a condition, ascending by key."""
    source = "items JOIN vectors USING (key)" if with_vectors else "items"
    columns = "key, id, label, metadata" + (", vector" if with_vectors else "")
    found = connection.execute(
        f"SELECT {columns} FROM {source} WHERE {condition.sql} ORDER BY key LIMIT ?",  # noqa: S608
        (*condition.parameters, limit),
    ).fetchall()
    return [
        (
            row[0],
            Item(row[1], np.frombuffer(row[4], "<f4") if with_vectors else None, row[2], metadata_of(row[3])),
        )
        for row in found
    ]


def read_records(connection: sqlite3.Connection, keys: list[int]) -> dict[int, list[Any]]:
    """Id, label and metadata of the items with these keys, as far as they exist, by key.

    SQLite joins them into one JSON text, for the same reason as in `insert`: a single step.
    """
    text = connection.execute(
        "SELECT json_group_array(json_array(key, id, label, metadata)) FROM items "
        "WHERE key IN (SELECT value FROM json_each(?))",
        (json_text(keys),),
    ).fetchone()[0]
    found: list[list[Any]] = msgspec.json.decode(text)
    return {key: [id_, label, metadata_of(metadata)] for key, id_, label, metadata in found}


def read_rows(
    connection: sqlite3.Connection, above: int, limit: int
) -> tuple[Keys, NDArray[np.uint8], list[tuple[ItemId, str | None, str | None]]]:
    """The next keys above a bound, their vectors as rows of bytes, and their records (see `Added`)."""
    found = connection.execute(
        "SELECT key, vector, id, label, metadata FROM vectors JOIN items USING (key) "
        "WHERE key > ? ORDER BY key LIMIT ?",
        (above, limit),
    ).fetchall()
    keys = np.fromiter((row[0] for row in found), np.int64, len(found))
    joined = np.frombuffer(b"".join([row[1] for row in found]), np.uint8)
    records = [row[2:] for row in found]
    return keys, joined.reshape(len(found), -1) if found else joined.reshape(0, 0), records


def json_text(values: list[Any]) -> str:
    """A list as a JSON array, for json_each."""
    return msgspec.json.encode(values).decode()


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
