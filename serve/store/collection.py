"""The embedded store: SQLite holds the items, FAISS searches an index derived from them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np

from serve.store import filters, rows
from serve.store.ann import flat
from serve.store.ann.approximate import parse
from serve.store.compaction import Compactor
from serve.store.database import Database, FaissDefinition, Tuning, WriteBatch, create_database, settled
from serve.store.items import BaseStore, check_id, check_ids, check_items, checked_in_chunks, unit_rows
from serve.store.manifest import SegmentFolder
from serve.store.query import run_query
from serve.store.rows import ItemReader
from serve.store.store_folder import DATABASE, StoreFolder, bytes_below
from serve.store.types import (
    DEFAULT_K,
    Filter,
    Item,
    ItemId,
    QueryArguments,
    ReadOnly,
    SearchQuery,
    SearchResult,
    StoreError,
    StoreMissing,
    StoreStats,
    Vectors,
    whole_number,
)
from serve.store.version import CurrentVersion

# Prefix of the names of indexes on fields, the same in every database.
_FIELD_INDEX = "payload:"
_DEFAULT = Tuning()


class FaissStore(ItemReader, BaseStore):
    """A collection in a folder of this process; see `serve.store.types.Store` for what it does.

    Use `FaissStore.open`, or `serve.store.catalogue.Catalogue` for several collections at once.
    """

    in_process = True
    _definition: FaissDefinition

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
        dim = None if dim is None else whole_number("dim", dim)
        if not (place / DATABASE).exists():
            if read_only or not create:
                raise StoreMissing(f"There is no collection {place.name!r} in {place.parent.parent}")
            if dim is None:
                raise StoreError(f"The new collection {place.name!r} needs dim, the length of its vectors")
            create_database(place, dim, fingerprint, index)
        super().__init__(Database(place / DATABASE, read_only=read_only))
        self.place = place
        self._folder = folder
        self._tuning = tuning
        try:
            self._definition = settled(self._database, dim, fingerprint, index)
            factory, effort = parse(self._definition.index)
            self._segments = SegmentFolder(place, self._database, self.dim, effort, tuning.device)
            found = self._segments.load(read_only=read_only)
            self._current = CurrentVersion(self._database, self.dim, found, tuning.memtable_rows)
            self._compactor: Compactor | None = None
            if not read_only:
                self._compactor = Compactor(self._database, self._segments, self._current, factory, tuning)
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
            folder: The store's folder.
            dim: Length of a vector; required for a new collection, checked on an old one.
            fingerprint: The model that makes the vectors; kept by a new collection, checked on an old one.
            index: FAISS index factory string, optionally with how far a search looks ("HNSW32,ef=128",
                "IVF1024,SQ8,nprobe=32"). None means "Flat" (exact) for a new collection and no change for an
                old one. A change rebuilds the index in the background.
            collection: Its name or alias.
            create: Create what does not exist.
            read_only: Take no lock and change nothing; searches see the state at opening.
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

    @property
    def name(self) -> str:
        """The collection's own name."""
        return self.place.name

    @property
    def index(self) -> str:
        """The index factory string."""
        return self._definition.index

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Stores items; see `Store.upsert`."""
        self._definition.check_fingerprint(fingerprint)
        chunks = checked_in_chunks(
            items, self._tuning.transaction_rows, lambda some: check_items(some, self.dim)
        )
        return sum(self._current.commits.run(functools.partial(rows.insert, chunk)) for chunk in chunks)

    def update(self, item_id: ItemId, changes: Mapping[str, Any]) -> None:
        """Changes label and metadata in part; see `Store.update`."""
        item_id = check_id(item_id)
        self._current.commits.run(lambda connection, batch: rows.edit(connection, item_id, changes, batch))

    def delete(self, ids: Iterable[ItemId] = (), *, where: Filter | None = None, erase: bool = False) -> int:
        """Deletes by id, by filter or both; see `Store.delete`."""
        listed = check_ids(ids)
        condition = None if where is None else filters.condition(where)

        def work(connection: Any, batch: WriteBatch) -> int:
            row_ids = rows.row_ids_of(connection, listed)
            if condition is not None:
                row_ids = np.union1d(row_ids, rows.row_ids_where(connection, condition))
            return rows.remove(connection, row_ids, batch)

        gone = self._current.commits.run(work)
        if erase:
            self.purge()
        return gone

    def purge(self) -> None:
        """Removes every byte of deleted items from the disk; see `Store.purge`."""
        self._writable().purge()
        with self._current.commits.paused():
            self._database.vacuum()

    def search(
        self, vectors: Vectors, query: SearchQuery | int = DEFAULT_K, **options: Unpack[QueryArguments]
    ) -> SearchResult:
        """Finds the most similar items; see `Store.search`."""
        query = SearchQuery.of(query, options)
        self._definition.check_fingerprint(query.fingerprint)
        flat.use_threads(self._tuning.search_threads)
        unit = unit_rows(vectors, self.dim, "query")
        return run_query(self._database, self._current, self.index, unit, query)

    def create_field_index(self, field: str) -> None:
        """Makes filters on a field fast; see `Store.create_field_index`."""
        expression = filters.column(field)
        if field != "id":  # ids have one anyway
            statement = f"CREATE INDEX IF NOT EXISTS {_index_name(field)} ON items ({expression})"
            self._current.commits.run(lambda connection, _: connection.execute(statement) and None)

    def drop_field_index(self, field: str) -> None:
        """Undoes `create_field_index`; see `Store.drop_field_index`."""
        statement = f"DROP INDEX IF EXISTS {_index_name(field)}"
        self._current.commits.run(lambda connection, _: connection.execute(statement) and None)

    def flush(self) -> None:
        """Writes memtables to segments on disk; see `Store.flush`."""
        self._writable().flush()

    def compact(self) -> None:
        """Merges everything into one segment now, so that a search asks one index.

        A collection with an approximate index does this by itself after a while without writes.
        """
        self._writable().compact()

    def stats(self) -> StoreStats:
        """Figures about the collection."""
        version = self._current.version
        with self._database.read() as connection:
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE name LIKE ?", (f"{_FIELD_INDEX}%",)
            ).fetchall()
        return StoreStats(
            items=self.count(),
            dim=self.dim,
            fingerprint=self.fingerprint,
            index=self.index,
            lsn=version.lsn,
            segments=sum(segment.name is not None for segment in version.segments),
            memtable=sum(len(segment) for segment in version.segments if segment.name is None),
            dead=sum(segment.dead_count for segment in version.segments),
            flushed_lsn=self._segments.flushed_lsn(),
            disk_bytes=bytes_below(self.place),
            field_indexes=tuple(sorted(row[0].removeprefix(_FIELD_INDEX) for row in names)),
            trouble=None if self._compactor is None else self._compactor.trouble,
        )

    def close(self) -> None:
        """Ends background work and releases the folder; a second call does nothing."""
        if self._compactor is not None:
            self._compactor.stop()
        self._database.close()
        if self._folder is not None:
            self._folder.release()

    def _writable(self) -> Compactor:
        if self._compactor is None:
            raise ReadOnly(f"{self.place} is open for reading only")
        return self._compactor


def _index_name(field: str) -> str:
    """The name of the index on a field as SQL text."""
    return '"' + (_FIELD_INDEX + filters.canonical(field)).replace('"', '""') + '"'
