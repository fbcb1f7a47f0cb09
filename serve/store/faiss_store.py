"""The store inside the process: SQLite holds the truth, FAISS searches what derives from it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from serve.store import filters, rows
from serve.store.candidates import Candidates
from serve.store.commits import Commits
from serve.store.database import Database
from serve.store.filters import Condition
from serve.store.folder import StoreFolder
from serve.store.protocol import (
    DimensionMismatch,
    Filter,
    FingerprintMismatch,
    Item,
    ItemId,
    ItemMissing,
    Page,
    SearchResult,
    StoreError,
    StoreMissing,
    StoreStats,
    Vectors,
)
from serve.store.recovery import recovered
from serve.store.rows import Changes
from serve.store.searching import Request, Searching
from serve.store.vectors import unit_rows

TRANSACTION_ROWS = 20_000
HEAD_ROWS = 16_384


class FaissStore:
    """A collection in a folder of this process; see `serve.store.protocol.Store` for what it does.

    Use `FaissStore.open`, or `serve.store.catalogue.Catalogue` for several collections at once.
    """

    def __init__(
        self,
        place: Path,
        *,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
        create: bool = True,
        read_only: bool = False,
        search_threads: int = 1,
        folder: StoreFolder | None = None,
    ) -> None:
        self.place = place
        self._folder = folder
        if not (place / "items.db").exists():
            if read_only or not create:
                raise StoreMissing(f"There is no collection {place.name!r} in {place.parent.parent}")
            if dim is None or dim < 1:
                raise StoreError(f"The new collection {place.name!r} needs dim, the length of its vectors")
            place.mkdir(parents=True, exist_ok=True)
        self._database = Database(place / "items.db", read_only=read_only)
        try:
            self._settle(dim, fingerprint, index)
            self._state = recovered(self._database, self._dim, [], HEAD_ROWS)
        except BaseException:
            self._database.close()
            raise
        self._candidates = Candidates(self._database)
        self._commits = Commits(self._database, self._publish)
        self._searching = Searching(
            self._database,
            lambda: self._state,
            self._candidates,
            None if read_only else self._commits,
            search_threads,
        )

    @classmethod
    def open(
        cls,
        folder: str | Path,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
        *,
        collection: str = "default",
        create: bool = True,
        read_only: bool = False,
        search_threads: int = 1,
    ) -> Self:
        """Opens (or creates) one collection and takes the folder's lock.

        Args:
            folder: Where the store lies.
            dim: Length of a vector; required for a new collection, checked on an old one.
            fingerprint: The model that makes the vectors; kept by a new collection, checked on an old one.
            index: FAISS index factory string; None means "Flat" (exact) for a new collection and as it is for
                an old one. Another one than before rebuilds the index in the background.
            collection: Its name or alias.
            create: Create what does not exist.
            read_only: Take no lock and change nothing; sees what was there when it was opened.
            search_threads: OpenMP threads of one search. 1 is best for a server with several workers.

        Raises:
            StoreLocked: Another process has the folder open.
            StoreMissing: It does not exist and `create` is false.
            DimensionMismatch: An old collection has another dim.
            FingerprintMismatch: An old collection has another fingerprint.
        """
        owned = StoreFolder(Path(folder), create=create, read_only=read_only)
        try:
            return cls(
                owned.place(collection),
                dim=dim,
                fingerprint=fingerprint,
                index=index,
                create=create,
                read_only=read_only,
                search_threads=search_threads,
                folder=owned,
            )
        except BaseException:
            owned.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The collection's own name."""
        return self.place.name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> str | None:
        """The model that made the vectors, if it was given."""
        return self._fingerprint

    @property
    def index(self) -> str:
        """The index factory string."""
        return self._index

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Stores items; see `Store.upsert`."""
        self._check_fingerprint(fingerprint)
        written = 0
        supply = iter(items)
        while chunk := list(itertools.islice(supply, TRANSACTION_ROWS)):
            batch = rows.check_batch(chunk, self._dim)
            written += self._commits.run(functools.partial(rows.insert, batch))
        return written

    def update(self, item_id: ItemId, changes: Mapping[str, Any]) -> None:
        """Changes label and metadata in part; see `Store.update`."""
        item_id = rows.check_id(item_id)
        self._commits.run(lambda connection, out: rows.edit(connection, item_id, changes, out))

    def delete(self, ids: Iterable[ItemId] = (), *, where: Filter | None = None, erase: bool = False) -> int:
        """Deletes by id, by filter or both; see `Store.delete`."""
        listed = [rows.check_id(value) for value in ids]
        condition = None if where is None else filters.condition(where)

        def work(connection: Any, changes: Changes) -> int:
            keys = rows.keys_of_ids(connection, listed)
            if condition is not None:
                keys = np.union1d(keys, rows.keys_where(connection, condition))
            return rows.remove(connection, keys, changes)

        gone = self._commits.run(work)
        if erase:
            self.purge()
        return gone

    def purge(self) -> None:
        """Leaves nothing of deleted items on disk; see `Store.purge`."""
        with self._commits.paused():
            self._database.vacuum()

    def get(self, ids: Sequence[ItemId], *, with_vectors: bool = False) -> list[Item | None]:
        """Items by id; see `Store.get`."""
        ids = [rows.check_id(value) for value in ids]
        condition = Condition("id IN (SELECT value FROM json_each(?))", (rows.json_text(ids),))
        with self._database.read() as connection:
            found = rows.read_items(connection, condition, with_vectors=with_vectors)
        by_id = {item.id: item for _, item in found}
        return [by_id.get(value) for value in ids]

    def search(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        where: Filter | None = None,
        min_similarity: float | None = None,
        exclude: Iterable[ItemId] = (),
        group_by: Literal["label"] | None = None,
        exact: bool = False,
        with_metadata: bool = True,
        fingerprint: str | None = None,
    ) -> SearchResult:
        """Finds the most similar items; see `Store.search`."""
        self._check_fingerprint(fingerprint)
        if k < 1:
            raise StoreError(f"k is {k}; ask for at least one hit")
        if group_by not in (None, "label"):
            raise StoreError(f"Cannot group by {group_by!r}; group by 'label'")
        return self._searching.run(
            Request(
                queries=unit_rows(vectors, self._dim, "query"),
                k=k,
                condition=filters.condition(where),
                min_similarity=min_similarity,
                exclude=tuple(rows.check_id(value) for value in exclude),
                group_by_label=group_by is not None,
                exact=exact,
                with_metadata=with_metadata,
                index=self._index,
            )
        )

    def search_examples(
        self,
        positives: Sequence[ItemId | Vectors],
        negatives: Sequence[ItemId | Vectors] = (),
        k: int = 10,
        *,
        where: Filter | None = None,
        min_similarity: float | None = None,
        exclude: Iterable[ItemId] = (),
        group_by: Literal["label"] | None = None,
        exact: bool = False,
        with_metadata: bool = True,
    ) -> SearchResult:
        """Finds items like the positive and unlike the negative examples; see `Store.search_examples`."""
        if len(positives) == 0:
            raise StoreError("There is no positive example; give at least one id or vector")
        target = self._examples(positives).mean(axis=0)
        if len(negatives):
            target = 2 * target - self._examples(negatives).mean(axis=0)
        named = [value for value in (*positives, *negatives) if isinstance(value, str | int)]
        return self.search(
            target,
            k,
            where=where,
            min_similarity=min_similarity,
            exclude=(*exclude, *named),
            group_by=group_by,
            exact=exact,
            with_metadata=with_metadata,
        )

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
        """All items, by scrolling."""
        after: int | None = 0
        while after is not None:
            page = self.scroll(after, 1000, where=where, with_vectors=with_vectors)
            yield from page.items
            after = page.next

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

    def create_payload_index(self, field: str) -> None:
        """Makes filters on a field fast; see `Store.create_payload_index`."""
        expression = filters.column(field)
        if field != "id":  # ids have one anyway
            statement = f'CREATE INDEX IF NOT EXISTS "payload:{field}" ON items ({expression})'
            self._commits.run(lambda connection, _: connection.execute(statement) and None)

    def snapshot(self) -> None:
        """Brings the derived index on disk up to date; see `Store.snapshot`."""

    def stats(self) -> StoreStats:
        """Figures about the collection."""
        state = self._state
        with self._database.read() as connection:
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE name LIKE 'payload:%'"
            ).fetchall()
        return StoreStats(
            items=self.count(),
            dim=self._dim,
            fingerprint=self._fingerprint,
            index=self._index,
            sequence=state.sequence,
            segments=len(state.parts) - 1,
            head=len(state.head),
            dead=sum(part.dead_count for part in state.parts),
            snapshot_sequence=0,
            disk_bytes=sum(path.stat().st_size for path in self.place.rglob("*") if path.is_file()),
            payload_indexes=tuple(sorted(row[0].removeprefix("payload:") for row in names)),
        )

    def close(self) -> None:
        """Ends background work and releases the folder; a second call does nothing."""
        self._database.close()
        if self._folder is not None:
            self._folder.release()

    def _publish(self, changes: Changes) -> None:
        if changes.edited:
            self._candidates.forget()
        self._state = self._state.after(changes, HEAD_ROWS)

    def _examples(self, examples: Sequence[ItemId | Vectors]) -> Vectors:
        """Vectors of examples given by id or as vectors."""
        ids = [rows.check_id(value) for value in examples if isinstance(value, str | int)]
        items = dict(zip(ids, self.get(ids, with_vectors=True), strict=True))
        missing = [value for value, item in items.items() if item is None]
        if missing:
            raise ItemMissing(f"There is no item {missing[0]!r}")
        found = [
            items[rows.check_id(value)].vector if isinstance(value, str | int) else value  # type: ignore[union-attr]
            for value in examples
        ]
        return unit_rows(found, self._dim, "example")

    def _check_fingerprint(self, given: str | None) -> None:
        if given is not None and self._fingerprint is not None and given != self._fingerprint:
            raise FingerprintMismatch(
                f"The collection {self.name!r} holds vectors of model {self._fingerprint}, not of {given}; "
                "embed with that model or build a new collection"
            )

    def _settle(self, dim: int | None, fingerprint: str | None, index: str | None) -> None:
        """Compares what the caller says of the collection with what it says itself; fills in a new one."""
        with self._database.read() as connection:
            kept = dict(connection.execute("SELECT name, value FROM properties").fetchall())
        if "dim" not in kept:
            kept |= {"dim": dim, "fingerprint": fingerprint, "index": index or "Flat"}
            with self._database.write() as connection:
                connection.executemany("INSERT OR REPLACE INTO properties VALUES (?, ?)", kept.items())
        self._dim, self._index = int(kept["dim"]), str(kept["index"])
        self._fingerprint: str | None = kept["fingerprint"]
        if dim is not None and dim != self._dim:
            raise DimensionMismatch(f"The collection {self.name!r} takes {self._dim} numbers, not {dim}")
        self._check_fingerprint(fingerprint)
