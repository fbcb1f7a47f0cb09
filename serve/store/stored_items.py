"""Reading items of a collection straight from the truth, without its index."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from serve.store import filters, rows
from serve.store.database import Database
from serve.store.filters import Condition
from serve.store.protocol import Filter, Item, ItemId, Page, StoreError

_PAGE = 1000


class StoredItems:
    """The half of a store that needs no index. Every method reads one state and pins nothing afterwards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, ids: Sequence[ItemId], *, with_vectors: bool = False) -> list[Item | None]:
        """Items by id; see `Store.get`."""
        ids = [rows.check_id(value) for value in ids]
        condition = Condition("id IN (SELECT value FROM json_each(?))", (rows.json_text(ids),))
        with self._database.read() as connection:
            found = rows.read_items(connection, condition, with_vectors=with_vectors)
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
        if limit < 1:
            raise StoreError(f"limit is {limit}; ask for at least one item")
        condition = filters.condition(where)
        bounded = Condition(f"key > ? AND ({condition.sql})", (after or 0, *condition.parameters))
        with self._database.read() as connection:
            found = rows.read_items(connection, bounded, with_vectors=with_vectors, limit=limit)
        return Page([item for _, item in found], found[-1][0] if len(found) == limit else None)

    def scan(self, *, where: Filter | None = None, with_vectors: bool = False) -> Iterator[Item]:
        """All items, by scrolling; see `Store.scan`."""
        condition = filters.condition(where)
        with self._database.read() as connection:
            last = rows.sequence(connection)
        after, full = 0, True
        while full:
            bounded = Condition(
                f"key > ? AND key <= ? AND ({condition.sql})", (after, last, *condition.parameters)
            )
            with self._database.read() as connection:
                found = rows.read_items(connection, bounded, with_vectors=with_vectors, limit=_PAGE)
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
            # Each number stands for the item that follows it.
            numbers = random.sample(range(low, high + 1), min(count, high + 1 - low))
            condition = Condition(
                "key IN (SELECT (SELECT min(key) FROM items WHERE key >= value) FROM json_each(?))",
                (rows.json_text(numbers),),
            )
            found = rows.read_items(connection, condition, with_vectors=with_vectors)
        return [item for _, item in found]

    def thumbnail(self, item_id: ItemId) -> bytes | None:
        """The item's thumbnail; see `Store.thumbnail`."""
        query = "SELECT image FROM thumbnails WHERE key = (SELECT key FROM items WHERE id = ?)"
        with self._database.read() as connection:
            row = connection.execute(query, (rows.check_id(item_id),)).fetchone()
        return None if row is None else bytes(row[0])

    def labels(self, limit: int = 1000) -> dict[str, int]:
        """Labels with their number of items, most frequent first."""
        query = (
            "SELECT label, count(*) FROM items WHERE label IS NOT NULL "
            "GROUP BY label ORDER BY count(*) DESC, label LIMIT ?"
        )
        with self._database.read() as connection:
            return dict(connection.execute(query, (limit,)).fetchall())
