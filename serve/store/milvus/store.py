"""The store in Milvus."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, Unpack

from serve.store import rows
from serve.store.examples import ByExamples
from serve.store.milvus.address import parse_address
from serve.store.milvus.definition import create_collection, open_collection
from serve.store.milvus.engine import Engine
from serve.store.milvus.expressions import expression, keys_in
from serve.store.milvus.keys import id_of, key_of
from serve.store.milvus.records import checked_rows, messages, metadata_fields
from serve.store.milvus.stored_items import StoredItems
from serve.store.protocol import (
    DEFAULT_K,
    Filter,
    Item,
    ItemId,
    ItemMissing,
    QueryArguments,
    SearchQuery,
    SearchResult,
    StoreError,
    StoreMissing,
    Unsupported,
    Vectors,
)
from serve.store.vectors import unit_rows

Consistency = Literal["Strong", "Session"]

_CHECKED_AT_ONCE = 20_000
_DELETED_AT_ONCE = 5_000
_EVERYTHING = ("vector", "label", "metadata", "facets", "sequence", "thumbnail")


class MilvusStore(StoredItems, ByExamples):
    """A collection in Milvus; see `serve.store.protocol.Store` for what it does, docs/store.md for what
    differs.

    Use `MilvusStore.open`, or `serve.store.milvus.catalogue.MilvusCatalogue` for several collections at once.

    Args:
        engine: The connection.
        definition: The collection.
        owned: Whether closing the store ends the connection.
    """

    in_process = False

    @classmethod
    def open(
        cls,
        address: str,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
        *,
        collection: str = "default",
        create: bool = True,
        token: str = "",
        timeout: float = 30.0,
        consistency: Consistency = "Strong",
    ) -> Self:
        """Opens (or creates) one collection.

        Args:
            address: `file:PATH` for milvus-lite, `milvus://HOST[:PORT][/DATABASE]` for a server.
            dim: Length of a vector; required for a new collection, checked on an old one.
            fingerprint: The model that makes the vectors; kept by a new collection, checked on an old one.
            index: Index type such as "HNSW" or "HNSW,M=32,ef=128"; None means FLAT (exact) for a new
                collection.
            collection: Its name or alias.
            create: Create what does not exist.
            token: `USER:PASSWORD` or an API key of the server.
            timeout: Seconds that one call to a server may take.
            consistency: Of a new collection on a server. "Strong": a search sees every write that any process
                was acknowledged before. "Session": every write of this process; faster while others write.

        Raises:
            StoreUnreachable: The server does not answer.
            StoreLocked: Another process has the embedded files open.
            StoreMissing: The collection does not exist and `create` is false.
            DimensionMismatch: An old collection has another dim.
            FingerprintMismatch: An old collection has another fingerprint.
            StoreError: pymilvus is missing, or the engine does not build this index.
        """
        engine = Engine(parse_address(address), token=token, timeout=timeout)
        try:
            return cls.on(
                engine,
                dim,
                fingerprint,
                index,
                collection=collection,
                create=create,
                consistency=consistency,
                owned=True,
            )
        except BaseException:
            engine.close()
            raise

    @classmethod
    def on(
        cls,
        engine: Engine,
        dim: int | None = None,
        fingerprint: str | None = None,
        index: str | None = None,
        *,
        collection: str = "default",
        create: bool = True,
        consistency: Consistency = "Strong",
        owned: bool = False,
    ) -> Self:
        """Opens (or creates) one collection over a connection that exists; see `open`."""
        try:
            definition = open_collection(engine, collection, dim, fingerprint, index)
        except StoreMissing:
            if not create:
                raise
            if dim is None:
                raise StoreError(
                    f"The new collection {collection!r} needs dim, the length of its vectors"
                ) from None
            definition = create_collection(engine, collection, dim, fingerprint, index, consistency)
        return cls(engine, definition, owned=owned)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Stores items; see `Store.upsert`.

        All items of a call (20,000 at a time) are checked before the first one is sent; a server that fails
        in the middle may have stored a part of them.
        """
        self._definition.check_fingerprint(fingerprint)
        written = taken = 0
        supply = iter(items)
        while chunk := list(itertools.islice(supply, _CHECKED_AT_ONCE)):
            checked = rows.naming_the_item(lambda some: checked_rows(some, self.dim), chunk, taken)
            taken += len(chunk)
            self._open()
            with self._writing:
                first = self._numbers.take(len(checked))
                for number, row in enumerate(checked, first):
                    row["sequence"] = number
                for message in messages(checked):
                    self._engine.call("upsert", self._definition.inside, message)
            written += len(checked)
        return written

    def update(self, item_id: ItemId, changes: Mapping[str, Any]) -> None:
        """Changes label and metadata in part; see `Store.update`.

        The row is read, changed and written back: of two processes that change the same item at the same
        moment, one wins.
        """
        item_id = rows.check_id(item_id)
        unknown = set(changes) - {"label", "metadata"}
        if unknown:
            raise StoreError(f"Cannot change {sorted(unknown)[0]!r} of an item; change label or metadata")
        label = rows.check_label(changes.get("label"))
        patched = rows.metadata_text(changes.get("metadata")) is not None
        self._open()
        with self._writing:
            found = self._reading.by_id([item_id], _EVERYTHING)
            if not found:
                raise ItemMissing(f"There is no item {item_id!r}")
            row = found[key_of(item_id)]
            if "label" in changes:
                row["label"] = label
            if patched:
                metadata = rows.merged(row["metadata"] or {}, changes["metadata"])
                row.update(metadata_fields(rows.metadata_text(metadata)))
            self._engine.call("upsert", self._definition.inside, [row])
            self._numbers.take(1)

    def delete(self, ids: Iterable[ItemId] = (), *, where: Filter | None = None, erase: bool = False) -> int:
        """Deletes by id, by filter or both; see `Store.delete`. `erase` is refused, see `purge`."""
        listed = [rows.check_id(value) for value in ids]
        condition = None if where is None else expression(where, self._engine.dialect)
        if erase:
            self.purge()
        self._open()
        with self._writing:
            keys = set(self._reading.by_id(listed, ["id"]))
            if condition is not None:
                for page in self._reading.pages(condition, ["id"]):
                    keys.update(row["id"] for row in page)
            gone = sorted(keys)
            for start in range(0, len(gone), _DELETED_AT_ONCE):
                batch = [id_of(key) for key in gone[start : start + _DELETED_AT_ONCE]]
                self._engine.call("delete", self._definition.inside, filter=keys_in(batch))
            self._numbers.take(1)
        return len(gone)

    def purge(self) -> None:
        """Refused: Milvus removes the bytes of deleted items when it compacts, and does not say when.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(
            "Milvus removes deleted items' bytes only when it compacts; delete without erase and let it "
            "compact, or copy the rest to a new collection (kindred index copy) and drop the old one"
        )

    def search(
        self, vectors: Vectors, query: SearchQuery | int = DEFAULT_K, **options: Unpack[QueryArguments]
    ) -> SearchResult:
        """Finds the most similar items; see `Store.search`."""
        query = SearchQuery.of(query, options)
        self._definition.check_fingerprint(query.fingerprint)
        self._open()
        return self._searching.run(unit_rows(vectors, self.dim, "query"), query)

    def snapshot(self) -> None:
        """Has milvus-lite write its recent items as a segment; a server does that by itself."""
        self._open()
        if self._engine.embedded:
            self._engine.call("flush", self._definition.inside)

    def close(self) -> None:
        """Ends the connection if it is the store's own; a second call does nothing."""
        if not self._closed:
            self._closed = True
            if self._owned:
                self._engine.close()
