"""The store inside the process: SQLite holds the truth, FAISS searches what derives from it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from serve.store import definition, filters, rows
from serve.store.database import Database
from serve.store.definition import Tuning
from serve.store.examples import ByExamples
from serve.store.files import bytes_below
from serve.store.folder import DATABASE, StoreFolder
from serve.store.live_index import LiveIndex
from serve.store.protocol import (
    DEFAULT_K,
    Filter,
    Item,
    ItemId,
    QueryArguments,
    SearchQuery,
    SearchResult,
    StoreError,
    StoreMissing,
    StoreStats,
    Vectors,
)
from serve.store.rows import Changes
from serve.store.stored_items import StoredItems
from serve.store.vectors import unit_rows

_DEFAULT = Tuning()


class FaissStore(StoredItems, ByExamples):
    """A collection in a folder of this process; see `serve.store.protocol.Store` for what it does.

    Use `FaissStore.open`, or `serve.store.catalogue.Catalogue` for several collections at once.
    """

    in_process = True

    def __init__(
        self,
        place: Path,
        *,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
        create: bool = True,
        read_only: bool = False,
        tuning: Tuning = _DEFAULT,
        folder: StoreFolder | None = None,
    ) -> None:
        if not (place / DATABASE).exists():
            if read_only or not create:
                raise StoreMissing(f"There is no collection {place.name!r} in {place.parent.parent}")
            if dim is None:
                raise StoreError(f"The new collection {place.name!r} needs dim, the length of its vectors")
            definition.create(place, dim, fingerprint, index)
        super().__init__(Database(place / DATABASE, read_only=read_only))
        self.place = place
        self._folder = folder
        self._tuning = tuning
        try:
            self._definition = definition.settled(self._database, dim, fingerprint, index)
            self._live = LiveIndex(place, self._database, self._definition, tuning)
        except BaseException:
            self._database.close()
            raise

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
        tuning: Tuning = _DEFAULT,
    ) -> Self:
        """Opens (or creates) one collection and takes the folder's lock.

        Args:
            folder: Where the store lies.
            dim: Length of a vector; required for a new collection, checked on an old one.
            fingerprint: The model that makes the vectors; kept by a new collection, checked on an old one.
            index: FAISS index factory string, perhaps with how far a search looks ("HNSW32,ef=128",
                "IVF1024,SQ8,nprobe=32"); None means "Flat" (exact) for a new collection and as it is for an
                old one. Another one than before rebuilds the index in the background.
            collection: Its name or alias.
            create: Create what does not exist.
            read_only: Take no lock and change nothing; sees what was there when it was opened.
            tuning: Sizes and threads.

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
                tuning=tuning,
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
        return self._definition.dim

    @property
    def fingerprint(self) -> str | None:
        """The model that made the vectors, if it was given."""
        return self._definition.fingerprint

    @property
    def index(self) -> str:
        """The index factory string."""
        return self._definition.index

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Stores items; see `Store.upsert`."""
        self._definition.check_fingerprint(fingerprint)
        written = taken = 0
        supply = iter(items)
        while chunk := list(itertools.islice(supply, self._tuning.transaction_rows)):
            batch = rows.naming_the_item(lambda some: rows.check_batch(some, self.dim), chunk, taken)
            taken += len(chunk)
            written += self._live.commit(functools.partial(rows.insert, batch))
        return written

    def update(self, item_id: ItemId, changes: Mapping[str, Any]) -> None:
        """Changes label and metadata in part; see `Store.update`."""
        item_id = rows.check_id(item_id)
        self._live.commit(lambda connection, out: rows.edit(connection, item_id, changes, out))

    def delete(self, ids: Iterable[ItemId] = (), *, where: Filter | None = None, erase: bool = False) -> int:
        """Deletes by id, by filter or both; see `Store.delete`."""
        listed = [rows.check_id(value) for value in ids]
        condition = None if where is None else filters.condition(where)

        def work(connection: Any, changes: Changes) -> int:
            keys = rows.keys_of_ids(connection, listed)
            if condition is not None:
                keys = np.union1d(keys, rows.keys_where(connection, condition))
            return rows.remove(connection, keys, changes)

        gone = self._live.commit(work)
        if erase:
            self.purge()
        return gone

    def purge(self) -> None:
        """Leaves nothing of deleted items on disk; see `Store.purge`."""
        self._live.purge()

    def search(
        self, vectors: Vectors, query: SearchQuery | int = DEFAULT_K, **options: Unpack[QueryArguments]
    ) -> SearchResult:
        """Finds the most similar items; see `Store.search`."""
        query = SearchQuery.of(query, options)
        self._definition.check_fingerprint(query.fingerprint)
        return self._live.search(unit_rows(vectors, self.dim, "query"), query)

    def create_payload_index(self, field: str) -> None:
        """Makes filters on a field fast; see `Store.create_payload_index`."""
        expression = filters.column(field)
        if field != "id":  # ids have one anyway
            statement = f"CREATE INDEX IF NOT EXISTS {_index_name(field)} ON items ({expression})"
            self._live.commit(lambda connection, _: connection.execute(statement) and None)

    def drop_payload_index(self, field: str) -> None:
        """Undoes `create_payload_index`; see `Store.drop_payload_index`."""
        statement = f"DROP INDEX IF EXISTS {_index_name(field)}"
        self._live.commit(lambda connection, _: connection.execute(statement) and None)

    def snapshot(self) -> None:
        """Brings the derived index on disk up to date; see `Store.snapshot`."""
        self._live.snapshot()

    def compact(self) -> None:
        """Merges everything into one segment now, so that a search asks one index.

        An approximate collection does this by itself once nobody writes to it for a while.
        """
        self._live.compact()

    def stats(self) -> StoreStats:
        """Figures about the collection."""
        state = self._live.state
        with self._database.read() as connection:
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE name LIKE 'payload:%'"
            ).fetchall()
        return StoreStats(
            items=self.count(),
            dim=self.dim,
            fingerprint=self.fingerprint,
            index=self.index,
            sequence=state.sequence,
            segments=sum(part.name is not None for part in state.parts),
            head=sum(len(part) for part in state.parts if part.name is None),
            dead=sum(part.dead_count for part in state.parts),
            snapshot_sequence=self._live.snapshot_sequence(),
            disk_bytes=bytes_below(self.place),
            payload_indexes=tuple(sorted(row[0].removeprefix("payload:") for row in names)),
            trouble=self._live.trouble,
        )

    def close(self) -> None:
        """Ends background work and releases the folder; a second call does nothing."""
        self._live.close()
        self._database.close()
        if self._folder is not None:
            self._folder.release()


def _index_name(field: str) -> str:
    """The payload index's name as SQL text."""
    return '"' + filters.payload_index(field).replace('"', '""') + '"'
