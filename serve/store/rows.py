"""Rows of the database: written in a transaction, read back as items. Nothing here needs the index."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.store import filters
from serve.store.database import AddedRows, Database, WriteBatch, last_lsn
from serve.store.filters import Condition
from serve.store.items import (
    CheckedItems,
    check_id,
    check_ids,
    check_limit,
    check_patch,
    merged,
    metadata_of,
    metadata_text,
)
from serve.store.types import NO_ROW_IDS, Filter, Item, ItemId, ItemMissing, Page, RowIds

# Items that a scan reads at a time.
_PAGE = 1000
# Rows that one statement inserts, largest first. Every build of SQLite allows the 999 parameters that the
# largest stays below.
_ROWS_PER_STATEMENT = (240, 30, 5, 1)


def insert(items: CheckedItems, connection: sqlite3.Connection, batch: WriteBatch) -> int:
    """Writes items under new row ids and removes the rows that had their ids."""
    remove(connection, row_ids_of(connection, items.ids), batch, count_write=False)
    first = batch.lsn + 1
    row_ids = np.arange(first, first + len(items.ids), dtype=np.int64)
    batch.lsn += len(row_ids)
    numbers = row_ids.tolist()
    size = 4 * items.vectors.shape[1]
    joined = items.vectors.astype("<f4", copy=False).tobytes()
    vectors = (joined[start : start + size] for start in range(0, len(joined), size))
    records = list(zip(items.ids, items.labels, items.metadata, strict=True))
    _insert_rows(connection, "items", [(row, *record) for row, record in zip(numbers, records, strict=True)])
    _insert_rows(connection, "vectors", list(zip(numbers, vectors, strict=True)))
    images = zip(numbers, items.thumbnails, strict=True)
    _insert_rows(connection, "thumbnails", [(row, image) for row, image in images if image is not None])
    batch.added.append(AddedRows(row_ids, items.vectors, records))
    return len(row_ids)


def _insert_rows(connection: sqlite3.Connection, table: str, values: list[tuple[Any, ...]]) -> None:
    """Inserts many rows with each statement.

    Each step of a statement releases the interpreter's lock and has to acquire it again. `executemany` takes
    a step for each row: minutes instead of a second while dozens of threads search.
    """
    start = 0
    for size in _ROWS_PER_STATEMENT:
        places = f"({', '.join('?' * len(values[0]))})" if values else ""
        statement = f"INSERT INTO {table} VALUES {', '.join([places] * size)}"  # noqa: S608
        while len(values) - start >= size:
            flat = itertools.chain.from_iterable(values[start : start + size])
            connection.execute(statement, tuple(flat))
            start += size


def remove(
    connection: sqlite3.Connection, row_ids: RowIds, batch: WriteBatch, *, count_write: bool = True
) -> int:
    """Removes rows."""
    if count_write:
        batch.lsn += 1
    if len(row_ids):
        listed = json_text(row_ids.tolist())
        for table in ("items", "vectors", "thumbnails", "edits"):
            connection.execute(
                f"DELETE FROM {table} WHERE key IN (SELECT value FROM json_each(?))",  # noqa: S608
                (listed,),
            )
        batch.removed.append(row_ids)
    return len(row_ids)


def edit(
    connection: sqlite3.Connection, item_id: ItemId, patch: Mapping[str, Any], batch: WriteBatch
) -> None:
    """Changes label and metadata of one item; see `Store.update`."""
    check_patch(patch)
    found = connection.execute("SELECT key, metadata FROM items WHERE id = ?", (item_id,)).fetchone()
    if found is None:
        raise ItemMissing(f"There is no item {item_id!r}")
    row_id, text = found
    if "label" in patch:
        connection.execute("UPDATE items SET label = ? WHERE key = ?", (patch["label"], row_id))
    if patch.get("metadata"):
        metadata = metadata_text(merged(metadata_of(text), patch["metadata"]))
        connection.execute("UPDATE items SET metadata = ? WHERE key = ?", (metadata, row_id))
    batch.lsn += 1
    connection.execute("INSERT OR REPLACE INTO edits VALUES (?, ?)", (row_id, batch.lsn))
    batch.edited.append(row_id)


def row_ids_of(connection: sqlite3.Connection, ids: Iterable[ItemId]) -> RowIds:
    """Row ids of those items that exist, ascending."""
    listed = json_text(list(ids))
    return row_ids_where(connection, Condition("id IN (SELECT value FROM json_each(?))", (listed,)))


def row_ids_where(connection: sqlite3.Connection, condition: Condition, above: int | None = None) -> RowIds:
    """Ids of the rows (above a bound, if given) that fulfil a condition, ascending.

    SQLite joins them into one text, so that a million row ids take one step.
    """
    # Few rows are above a bound, so the primary key beats an index on a field.
    source = "items WHERE" if above is None else f"items NOT INDEXED WHERE key > {above:d} AND"
    query = f"SELECT group_concat(key) FROM {source} ({condition.sql})"  # noqa: S608
    return _row_ids(connection, query, condition.parameters)


def edited_after(connection: sqlite3.Connection, lsn: int) -> RowIds:
    """Ids of the rows whose label or metadata a later write changed, ascending."""
    return _row_ids(connection, "SELECT group_concat(key) FROM edits WHERE sequence > ?", (lsn,))


def _row_ids(connection: sqlite3.Connection, query: str, parameters: tuple[Any, ...]) -> RowIds:
    text = connection.execute(query, parameters).fetchone()[0]
    return NO_ROW_IDS if text is None else np.sort(np.fromstring(text, dtype=np.int64, sep=","))


def read_items(
    connection: sqlite3.Connection, condition: Condition, *, with_vectors: bool, limit: int = -1
) -> list[tuple[int, Item]]:
    """Row ids and items that fulfil a condition, ascending by row id."""
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


def read_records(connection: sqlite3.Connection, row_ids: list[int]) -> dict[int, list[Any]]:
    """Id, label and metadata of the items with these row ids that exist, by row id.

    SQLite joins them into one JSON text, to take a single step as in `insert`.
    """
    text = connection.execute(
        "SELECT json_group_array(json_array(key, id, label, metadata)) FROM items "
        "WHERE key IN (SELECT value FROM json_each(?))",
        (json_text(row_ids),),
    ).fetchone()[0]
    found: list[list[Any]] = msgspec.json.decode(text)
    return {row_id: [id_, label, metadata_of(metadata)] for row_id, id_, label, metadata in found}


def read_rows(
    connection: sqlite3.Connection, above: int, limit: int
) -> tuple[RowIds, NDArray[np.uint8], list[tuple[ItemId, str | None, str | None]]]:
    """The next row ids above a bound, their vectors as rows of bytes, and their records (see `AddedRows`)."""
    found = connection.execute(
        "SELECT key, vector, id, label, metadata FROM vectors JOIN items USING (key) "
        "WHERE key > ? ORDER BY key LIMIT ?",
        (above, limit),
    ).fetchall()
    row_ids = np.fromiter((row[0] for row in found), np.int64, len(found))
    joined = np.frombuffer(b"".join([row[1] for row in found]), np.uint8)
    records = [row[2:] for row in found]
    return row_ids, joined.reshape(len(found), -1) if found else joined.reshape(0, 0), records


def json_text(values: list[Any]) -> str:
    """A list as a JSON array, for json_each."""
    return msgspec.json.encode(values).decode()


class ItemReader:
    """The methods of a store that need no index. Each reads one version and holds nothing open afterwards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, ids: Sequence[ItemId], *, with_vectors: bool = False) -> list[Item | None]:
        """Items by id; see `Store.get`."""
        ids = check_ids(ids)
        condition = Condition("id IN (SELECT value FROM json_each(?))", (json_text(ids),))
        with self._database.read() as connection:
            found = read_items(connection, condition, with_vectors=with_vectors)
        by_id = {item.id: item for _, item in found}
        return [by_id.get(value) for value in ids]

    def count(self, where: Filter | None = None) -> int:
        """Number of items that pass; see `Store.count`."""
        condition = filters.condition(where)
        with self._database.read() as connection:
            query = f"SELECT count(*) FROM items WHERE {condition.sql}"  # noqa: S608
            return int(connection.execute(query, condition.parameters).fetchone()[0])

    def scroll(
        self,
        after: int | None = None,
        limit: int = 100,
        *,
        where: Filter | None = None,
        with_vectors: bool = False,
    ) -> Page:
        """Reads items in the order of their last write; see `Store.scroll`."""
        limit = check_limit(limit)
        condition = filters.condition(where)
        bounded = Condition(f"key > ? AND ({condition.sql})", (after or 0, *condition.parameters))
        with self._database.read() as connection:
            found = read_items(connection, bounded, with_vectors=with_vectors, limit=limit)
        return Page([item for _, item in found], found[-1][0] if len(found) == limit else None)

    def scan(self, *, where: Filter | None = None, with_vectors: bool = False) -> Iterator[Item]:
        """All items, by scrolling; see `Store.scan`."""
        condition = filters.condition(where)
        with self._database.read() as connection:
            last = last_lsn(connection)
        after, full = 0, True
        while full:
            bounded = Condition(
                f"key > ? AND key <= ? AND ({condition.sql})", (after, last, *condition.parameters)
            )
            with self._database.read() as connection:
                found = read_items(connection, bounded, with_vectors=with_vectors, limit=_PAGE)
            yield from (item for _, item in found)
            full = len(found) == _PAGE
            after = found[-1][0] if full else last

    def sample(self, count: int, *, with_vectors: bool = False) -> list[Item]:
        """Items drawn at random; see `Store.sample`."""
        page = self.scroll(None, count, with_vectors=with_vectors)
        if page.next is None:
            return page.items
        with self._database.read() as connection:
            low, high = connection.execute(
                "SELECT (SELECT min(key) FROM items), (SELECT max(key) FROM items)"
            ).fetchone()
            # Each number selects the first item at or after it.
            numbers = random.sample(range(low, high + 1), min(count, high + 1 - low))
            condition = Condition(
                "key IN (SELECT (SELECT min(key) FROM items WHERE key >= value) FROM json_each(?))",
                (json_text(numbers),),
            )
            found = read_items(connection, condition, with_vectors=with_vectors)
        return [item for _, item in found]

    def thumbnail(self, item_id: ItemId) -> bytes | None:
        """The item's thumbnail; see `Store.thumbnail`."""
        query = "SELECT image FROM thumbnails WHERE key = (SELECT key FROM items WHERE id = ?)"
        with self._database.read() as connection:
            row = connection.execute(query, (check_id(item_id),)).fetchone()
        return None if row is None else bytes(row[0])

    def labels(self, limit: int = 1000) -> dict[str, int]:
        """Labels with their number of items, most frequent first."""
        query = (
            "SELECT label, count(*) FROM items WHERE label IS NOT NULL "
            "GROUP BY label ORDER BY count(*) DESC, label LIMIT ?"
        )
        with self._database.read() as connection:
            return dict(connection.execute(query, (limit,)).fetchall())
