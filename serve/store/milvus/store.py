"""The store in Milvus."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, Unpack

from serve.store import filters
from serve.store.items import (
    BaseStore,
    check_id,
    check_ids,
    check_limit,
    check_patch,
    checked_in_chunks,
    merged,
    metadata_text,
    unit_rows,
)
from serve.store.milvus import schema
from serve.store.milvus.engine import CollectionCalls, Engine, parse_address
from serve.store.milvus.expressions import HAS_LABEL, all_of, expression, keys_in
from serve.store.milvus.reader import LsnCounter, MilvusSearcher, RowReader
from serve.store.milvus.schema import MilvusDefinition
from serve.store.store_folder import bytes_below
from serve.store.types import (
    DEFAULT_K,
    Filter,
    Item,
    ItemId,
    ItemMissing,
    Page,
    QueryArguments,
    SearchQuery,
    SearchResult,
    StoreError,
    StoreMissing,
    StoreStats,
    Unsupported,
    Vectors,
)

Consistency = Literal["Strong", "Session"]

_CHECKED_AT_ONCE = 20_000
_DELETED_AT_ONCE = 5_000
_MOST_LABELLED = 1_000_000
_INDEX = "kindred_payload_"  # as existing collections have it
_EVERYTHING = ("vector", "label", "metadata", "facets", "sequence", "thumbnail")


class MilvusStore(BaseStore):
    """A collection in Milvus; see `serve.store.types.Store` for what it does, docs/store.md for what
    differs.

    Use `MilvusStore.open`, or `milvus_catalogue.MilvusCatalogue` for several collections at once.
    """

    in_process = False
    _definition: MilvusDefinition

    def __init__(self, engine: Engine, definition: MilvusDefinition) -> None:
        self._engine = engine
        self._call = CollectionCalls(engine, definition.name)
        self._definition = definition
        self._owned = False  # whether closing the store ends the connection
        self._writing = threading.RLock()
        self._reader = RowReader(self._call, self._last)
        self._lsns = LsnCounter(self._reader, alone=engine.can.embedded)
        self._searcher = MilvusSearcher(self._call, definition, self._reader)

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
            consistency: Consistency level of a new collection on a server. "Strong": a search sees every
                acknowledged write of any process. "Session": every write of this process; faster while others
                write.

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
            store = cls.on(
                engine, dim, fingerprint, index, collection=collection, create=create, consistency=consistency
            )
        except BaseException:
            engine.close()
            raise
        store._owned = True
        return store

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
    ) -> Self:
        """Opens (or creates) one collection over a connection that stays open; see `open`."""
        try:
            definition = schema.open_collection(engine, collection, dim, fingerprint, index)
        except StoreMissing:
            if not create:
                raise
            if dim is None:
                raise StoreError(
                    f"The new collection {collection!r} needs dim, the length of its vectors"
                ) from None
            definition = schema.create_collection(engine, collection, dim, fingerprint, index, consistency)
        return cls(engine, definition)

    @property
    def name(self) -> str:
        """The collection's own name."""
        return self._definition.name

    @property
    def index(self) -> str:
        """The index type with its parameters."""
        return str(self._definition.index)

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Stores items; see `Store.upsert`.

        All items of a call (20,000 at a time) are checked before the first is sent; a server that fails
        midway may have stored some of them.
        """
        self._definition.check_fingerprint(fingerprint)
        written = 0
        for chunk in checked_in_chunks(
            items, _CHECKED_AT_ONCE, lambda some: schema.checked_rows(some, self.dim)
        ):
            with self._writing:
                first = self._lsns.take(len(chunk))
                for lsn, row in enumerate(chunk, first):
                    row["sequence"] = lsn
                for message in schema.messages(chunk):
                    self._call("upsert", message)
            written += len(chunk)
        return written

    def update(self, item_id: ItemId, changes: Mapping[str, Any]) -> None:
        """Changes label and metadata in part; see `Store.update`.

        The row is read, changed and written back: if two processes change the same item at the same moment,
        one change is lost.
        """
        item_id = check_id(item_id)
        check_patch(changes)
        with self._writing:
            found = self._reader.by_id([item_id], _EVERYTHING)
            if not found:
                raise ItemMissing(f"There is no item {item_id!r}")
            row = found[schema.key_of(item_id)]
            if "label" in changes:
                row["label"] = schema.optional_text(changes["label"])
            if changes.get("metadata"):
                metadata = merged(row["metadata"] or {}, changes["metadata"])
                row.update(schema.metadata_fields(metadata_text(metadata)))
            self._call("upsert", [row])
            self._lsns.take(1)

    def delete(self, ids: Iterable[ItemId] = (), *, where: Filter | None = None, erase: bool = False) -> int:
        """Deletes by id, by filter or both; see `Store.delete`. `erase` is refused, see `purge`."""
        self._call.check_open()
        listed = check_ids(ids)
        condition = None if where is None else expression(where, self._engine.can)
        if erase:
            self.purge()
        with self._writing:
            keys = set(self._reader.by_id(listed, ["id"]))
            if condition is not None:
                for page in self._reader.pages(condition, ["id"]):
                    keys.update(row["id"] for row in page)
            gone = sorted(keys)
            for start in range(0, len(gone), _DELETED_AT_ONCE):
                batch = [schema.id_of(key) for key in gone[start : start + _DELETED_AT_ONCE]]
                self._call("delete", filter=keys_in(batch))
            self._lsns.take(1)
        return len(gone)

    def purge(self) -> None:
        """Refused: Milvus removes the bytes of deleted items at an unknown time, when it compacts."""
        raise Unsupported(
            "Milvus removes deleted items' bytes only when it compacts; delete without erase and let it "
            "compact, or copy the rest to a new collection (kindred index copy) and drop the old one"
        )

    def search(
        self, vectors: Vectors, query: SearchQuery | int = DEFAULT_K, **options: Unpack[QueryArguments]
    ) -> SearchResult:
        """Finds the most similar items; see `Store.search`."""
        self._call.check_open()
        query = SearchQuery.of(query, options)
        self._definition.check_fingerprint(query.fingerprint)
        return self._searcher.run(unit_rows(vectors, self.dim, "query"), query)

    def get(self, ids: Sequence[ItemId], *, with_vectors: bool = False) -> list[Item | None]:
        """Items by id; see `Store.get`."""
        self._call.check_open()
        ids = check_ids(ids)
        found = self._reader.by_id(ids, _fields(with_vectors))
        wanted = [found.get(schema.key_of(value)) for value in ids]
        return [None if row is None else schema.item_of(row) for row in wanted]

    def count(self, where: Filter | None = None) -> int:
        """Number of items that pass; see `Store.count`."""
        condition = expression(where, self._engine.can)
        return self._reader.count(condition)

    def scroll(
        self,
        after: int | None = None,
        limit: int = 100,
        *,
        where: Filter | None = None,
        with_vectors: bool = False,
    ) -> Page:
        """Reads items in the order of their last write; see `Store.scroll`."""
        self._call.check_open()
        limit = check_limit(limit)
        condition = expression(where, self._engine.can)
        found = self._reader.after(after or 0, limit, condition, _fields(with_vectors))
        return Page(
            [schema.item_of(row) for row in found], found[-1]["sequence"] if len(found) >= limit else None
        )

    def scan(self, *, where: Filter | None = None, with_vectors: bool = False) -> Iterator[Item]:
        """All items, by scrolling; see `Store.scan`."""
        self._call.check_open()
        condition = expression(where, self._engine.can)
        until = all_of(condition, f"sequence <= {self._last()}")
        for page in self._reader.pages(until, _fields(with_vectors)):
            yield from map(schema.item_of, page)

    def sample(self, count: int, *, with_vectors: bool = False) -> list[Item]:
        """Items drawn at random; see `Store.sample`."""
        self._call.check_open()
        fields = _fields(with_vectors)
        first = self._reader.after(0, count, "", fields)
        if len(first) < count:
            return [schema.item_of(row) for row in first]
        numbers = range(first[0]["sequence"], self._last() + 1)
        # Numbers of deleted items find nothing, so more numbers are drawn than items wanted.
        found = self._reader.numbered(random.sample(numbers, min(8 * count, len(numbers))), fields)
        drawn = random.sample(found, min(count, len(found)))
        return [schema.item_of(row) for row in sorted(drawn, key=lambda row: row["sequence"])]

    def thumbnail(self, item_id: ItemId) -> bytes | None:
        """The item's thumbnail; see `Store.thumbnail`."""
        item_id = check_id(item_id)
        found = self._reader.by_id([item_id], ["thumbnail"])
        return schema.thumbnail_of(found[schema.key_of(item_id)]["thumbnail"]) if found else None

    def labels(self, limit: int = 1000) -> dict[str, int]:
        """Labels with their number of items, most frequent first. Reads all; too many are `Unsupported`."""
        items = self._reader.count("")
        if items > _MOST_LABELLED:
            raise Unsupported(
                f"Milvus does not count labels, and {items:,} items are too many to read them all; "
                "count the labels you want with a filter"
            )
        counts: Counter[str] = Counter()
        for page in self._reader.pages(HAS_LABEL, ["label"], size=10_000):
            counts.update(row["label"][1:] for row in page)
        return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:limit])

    def create_field_index(self, field: str) -> None:
        """Makes filters on a field fast; `Unsupported` where the engine has no such index."""
        self._call.check_open()
        name = filters.canonical(field)
        if name == "id" or name in self._field_indexes():
            return
        engine = self._engine.can
        indexes = self._engine.pymilvus.MilvusClient.prepare_index_params()
        if field == "label":
            indexes.add_index("label", index_type=engine.label_index)
        elif not engine.indexes_metadata:
            raise Unsupported(f"{engine.name} has no index for metadata; filters work without one")
        else:
            for facet, cast in zip(_indexed_facets(field), ("double", "varchar"), strict=True):
                indexes.add_index(
                    "facets",
                    index_name=_index_name(facet),
                    index_type="INVERTED",
                    params={"json_path": f'facets["{facet}"]', "json_cast_type": cast},
                )
        self._call("create_index", indexes)

    def drop_field_index(self, field: str) -> None:
        """Undoes `create_field_index`; `Unsupported` where the engine drops no index while it is open."""
        self._call.check_open()
        name = filters.canonical(field)
        if name == "id" or name not in self._field_indexes():
            return
        if not self._engine.can.drops_indexes:
            raise Unsupported(
                f"{self._engine.can.name} drops no index of an open collection; copy it to a new one"
            )
        dropped = ["label"] if field == "label" else list(map(_index_name, _indexed_facets(field)))
        for index in dropped:
            self._call("drop_index", index)

    def stats(self) -> StoreStats:
        """Figures about the collection; those that Milvus does not report are 0."""
        lsn = self._last()
        folder = self._engine.address.folder
        place = None if folder is None else folder / "collections" / self._definition.inside
        return StoreStats(
            items=self._reader.count(""),
            dim=self.dim,
            fingerprint=self.fingerprint,
            index=self.index,
            lsn=lsn,
            segments=0,
            memtable=0,
            dead=0,
            flushed_lsn=lsn,
            disk_bytes=0 if place is None else bytes_below(place),
            field_indexes=self._field_indexes(),
        )

    def flush(self) -> None:
        """Makes the engine build the index over recent items, and waits until searches use it.

        By itself a server does so only minutes later; until then an approximate index has low recall for
        these items. The exact index does not need it.

        Raises:
            StoreError: The server takes more than ten minutes.
        """
        self._call.check_open()
        if self._engine.can.embedded:
            self._call("flush")
        elif not self._definition.index.exact:
            self._call("flush", timeout=schema.INDEX_SECONDS)
            deadline = time.monotonic() + schema.INDEX_SECONDS
            while not self._indexed():
                if time.monotonic() > deadline:
                    raise StoreError(f"{self._engine.address.uri} builds no index; look into its log")
                time.sleep(0.5)

    def close(self) -> None:
        """Ends the connection if the store owns it; a second call does nothing."""
        if not self._call.closed:
            self._call.closed = True
            if self._owned:
                self._engine.close()

    def _last(self) -> int:
        with self._writing:
            return self._lsns.last()

    def _indexed(self) -> bool:
        """Whether a server has built the index over all flushed items and searches with it."""
        told = self._call("describe_index", "vector")
        segments = self._call("list_loaded_segments")
        searched = sum(segment.num_rows for segment in segments if segment.state_name == "Sealed")
        return bool(told["pending_index_rows"] == 0 and searched >= told["total_rows"])

    def _field_indexes(self) -> tuple[str, ...]:
        names = set(self._call("list_indexes"))
        facets = [
            bytes.fromhex(name.removeprefix(_INDEX)).decode() for name in names if name.startswith(_INDEX)
        ]
        found = {filters.field_of(schema.names_in(facet.partition(":")[2])) for facet in facets}
        return tuple(sorted(found | (names & {"label"})))


def _indexed_facets(field: str) -> list[str]:
    name = schema.facet_name(filters.names_of(field))
    return [schema.NUMBER + name, schema.TEXT + name]


def _index_name(facet: str) -> str:
    # Milvus takes letters, digits and "_" only.
    return _INDEX + facet.encode().hex()


def _fields(with_vectors: bool) -> list[str]:
    return ["label", "metadata", "vector"] if with_vectors else ["label", "metadata"]
