"""Reading items of a collection in Milvus without its index."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

from serve.store import filters, rows
from serve.store.files import bytes_below
from serve.store.milvus.definition import MilvusDefinition
from serve.store.milvus.engine import Engine
from serve.store.milvus.expressions import all_of, expression
from serve.store.milvus.facets import NUMBER, TEXT, facet_name, names_in
from serve.store.milvus.keys import key_of
from serve.store.milvus.numbers import WriteNumbers
from serve.store.milvus.reading import Reading
from serve.store.milvus.records import item_of, unpacked
from serve.store.milvus.searching import Searching
from serve.store.protocol import Filter, Item, ItemId, Page, StoreError, StoreStats, Unsupported

_MOST_LABELLED = 1_000_000


class StoredItems:
    """The half of a store that needs no index.

    Args:
        engine: The connection.
        definition: The collection.
        owned: Whether closing the store ends the connection.
    """

    def __init__(self, engine: Engine, definition: MilvusDefinition, *, owned: bool = False) -> None:
        self._engine = engine
        self._definition = definition
        self._owned = owned
        self._closed = False
        self._writing = threading.RLock()
        self._numbers = WriteNumbers(engine, definition.inside)
        self._reading = Reading(engine, definition.inside, self._last)
        self._searching = Searching(engine, definition, self._reading)

    @property
    def name(self) -> str:
        """The collection's own name."""
        return self._definition.name

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
        """The index type with its parameters."""
        return str(self._definition.index)

    def get(self, ids: Sequence[ItemId], *, with_vectors: bool = False) -> list[Item | None]:
        """Items by id; see `Store.get`."""
        ids = [rows.check_id(value) for value in ids]
        self._open()
        found = self._reading.by_id(ids, _fields(with_vectors))
        wanted = [found.get(key_of(value)) for value in ids]
        return [None if row is None else item_of(row) for row in wanted]

    def count(self, where: Filter | None = None) -> int:
        """Number of items that pass; see `Store.count`."""
        condition = expression(where, self._engine.dialect)
        self._open()
        return self._reading.count(condition)

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
        condition = expression(where, self._engine.dialect)
        self._open()
        found = self._reading.after(after or 0, limit, condition, _fields(with_vectors))
        return Page([item_of(row) for row in found], found[-1]["sequence"] if len(found) >= limit else None)

    def scan(self, *, where: Filter | None = None, with_vectors: bool = False) -> Iterator[Item]:
        """All items, by scrolling; see `Store.scan`."""
        condition = expression(where, self._engine.dialect)
        self._open()
        until = all_of(condition, f"sequence <= {self._last()}")
        for page in self._reading.pages(until, _fields(with_vectors)):
            yield from map(item_of, page)

    def sample(self, count: int, *, with_vectors: bool = False) -> list[Item]:
        """Items drawn at random; see `Store.sample`."""
        self._open()
        fields = _fields(with_vectors)
        first = self._reading.after(0, count, "", fields)
        if len(first) < count:
            return [item_of(row) for row in first]
        numbers = range(first[0]["sequence"], self._last() + 1)
        # Deleted items have left their numbers behind: more numbers than items are asked for.
        found = self._reading.numbered(random.sample(numbers, min(8 * count, len(numbers))), fields)
        drawn = random.sample(found, min(count, len(found)))
        return [item_of(row) for row in sorted(drawn, key=lambda row: row["sequence"])]

    def thumbnail(self, item_id: ItemId) -> bytes | None:
        """The item's thumbnail; see `Store.thumbnail`."""
        item_id = rows.check_id(item_id)
        self._open()
        found = self._reading.by_id([item_id], ["thumbnail"])
        return unpacked(found[key_of(item_id)]["thumbnail"]) if found else None

    def labels(self, limit: int = 1000) -> dict[str, int]:
        """Labels with their number of items, most frequent first; every item's label is read for it.

        Raises:
            Unsupported: There are too many items for that.
        """
        self._open()
        items = self._reading.count("")
        if items > _MOST_LABELLED:
            raise Unsupported(
                f"Milvus does not count labels, and {items:,} items are too many to read them all; "
                "count the labels you want with a filter"
            )
        counts: Counter[str] = Counter()
        for page in self._reading.pages("label is not null", ["label"], size=10_000):
            counts.update(row["label"] for row in page)
        return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:limit])

    def create_payload_index(self, field: str) -> None:
        """Makes filters on a field fast; see `Store.create_payload_index`.

        Raises:
            Unsupported: milvus-lite has no index for metadata.
        """
        name = filters.payload_index(field).removeprefix("payload:")
        self._open()
        if name == "id" or name in self._payload_indexes():
            return
        indexes = self._engine.pymilvus.MilvusClient.prepare_index_params()
        if field == "label":
            indexes.add_index("label", index_type="INVERTED")
        elif self._engine.embedded:
            raise Unsupported("milvus-lite has no index for metadata; filters work without one")
        else:
            for facet, cast in zip(_indexed_facets(field), ("double", "varchar"), strict=True):
                indexes.add_index(
                    "facets",
                    index_name=f"payload {facet}",
                    index_type="INVERTED",
                    params={"json_path": f'facets["{facet}"]', "json_cast_type": cast},
                )
        self._engine.call("create_index", self._definition.inside, indexes)

    def drop_payload_index(self, field: str) -> None:
        """Undoes `create_payload_index`; see `Store.drop_payload_index`.

        Raises:
            Unsupported: milvus-lite drops no index of a collection that is open.
        """
        name = filters.payload_index(field).removeprefix("payload:")
        self._open()
        if name == "id" or name not in self._payload_indexes():
            return
        if self._engine.embedded:
            raise Unsupported("milvus-lite drops no index of an open collection; copy it to a new one")
        dropped = ["label"] if field == "label" else [f"payload {facet}" for facet in _indexed_facets(field)]
        for index in dropped:
            self._engine.call("drop_index", self._definition.inside, index)

    def stats(self) -> StoreStats:
        """Figures about the collection; what Milvus does not tell is 0."""
        self._open()
        sequence = self._last()
        folder = self._engine.address.folder
        place = None if folder is None else folder / "collections" / self._definition.inside
        return StoreStats(
            items=self._reading.count(""),
            dim=self.dim,
            fingerprint=self.fingerprint,
            index=self.index,
            sequence=sequence,
            segments=0,
            head=0,
            dead=0,
            snapshot_sequence=sequence,
            disk_bytes=0 if place is None else bytes_below(place),
            payload_indexes=self._payload_indexes(),
        )

    def _last(self) -> int:
        with self._writing:
            return self._numbers.last()

    def _open(self) -> None:
        if self._closed:
            raise StoreError(f"The collection {self.name!r} is closed")

    def _payload_indexes(self) -> tuple[str, ...]:
        names = set(self._engine.call("list_indexes", self._definition.inside))
        found = {
            filters.field_of(names_in(name.partition(":")[2]))
            for name in names
            if name.startswith("payload ")
        }
        return tuple(sorted(found | (names & {"label"})))


def _indexed_facets(field: str) -> list[str]:
    name = facet_name(filters.names_of(field))
    return [NUMBER + name, TEXT + name]


def _fields(with_vectors: bool) -> list[str]:
    return ["label", "metadata", "vector"] if with_vectors else ["label", "metadata"]
