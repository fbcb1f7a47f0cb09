"""The interface of every store (`Store`), its values and its errors.

A store keeps items (id, vector, label, metadata, thumbnail) and finds those whose vectors are most similar to
a query. Similarity is the cosine: vectors are L2-normalized on the way in, so it is their inner product.
"""

# ruff: noqa: N818  (errors are named by what went wrong, as InputError's other children are)

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.errors import InputError

ItemId: TypeAlias = str | int
"""The user's own id of an item; the string "1" and the integer 1 are two different items."""

Vectors: TypeAlias = NDArray[np.float32]

RowIds: TypeAlias = NDArray[np.int64]
"""Ids of rows in a store's database. A row's id is the number of the write that stored its vector."""

NO_ROW_IDS: RowIds = np.empty(0, np.int64)

Positions: TypeAlias = NDArray[np.int64]
"""Positions of rows in a segment, counted from 0."""

Mask: TypeAlias = NDArray[np.bool_]
"""One truth value for each row of a segment."""

Selection: TypeAlias = Positions | Mask
"""Some rows of a segment: their positions (ascending) where they are few, a mask where they are many.

Either indexes an array of the segment's rows in the same way.
"""

Filter: TypeAlias = Mapping[str, Any]
"""A condition on label, id and metadata in JSON form; `serve.store.filters` defines the language."""


DEFAULT_K = 10
"""Default number of hits per query."""

MOST_EFFORT = 65_536
"""Largest `effort` of a search."""


class StoreError(InputError):
    """A request that a store cannot carry out; the base of the errors below.

    Attributes:
        position: Position (from 0) of the item given to `upsert` that is at fault; None if no item is.
    """

    position: int | None = None


class DimensionMismatch(StoreError):
    """A vector has another length than the collection's."""


class FingerprintMismatch(StoreError):
    """The vectors come from another model than the collection's."""


class StoreLocked(StoreError):
    """Another process owns the folder."""


class StoreMissing(StoreError):
    """The folder or collection does not exist, and the call does not create it."""


class ReadOnly(StoreError):
    """The store was opened for reading only."""


class StoreUnreachable(StoreError):
    """The store is on another machine that does not answer (HTTP 503)."""


class Unsupported(StoreError):
    """This kind of store cannot do that; the message says what to do instead (HTTP 501)."""


class DiskFull(StoreError):
    """No space is left on the disk; nothing of the refused write was stored (HTTP 507)."""


class StoreBehind(StoreError):
    """The write is durable, but searches do not see it yet; the process tries again (HTTP 503)."""


class StoreDamaged(StoreError):
    """A file is not what the store wrote (HTTP 500)."""


class FilterError(StoreError):
    """A filter is not in the filter language."""


class ItemMissing(StoreError):
    """An id that a request names is not in the store (HTTP 404)."""


def whole_number(name: str, value: Any) -> int:
    """Returns the value as an int, also one of NumPy; StoreError if it is not a whole number."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise StoreError(f"{name} is {value!r:.40}; give a whole number") from None


def several(values: Iterable[Any]) -> tuple[Any, ...]:
    """Returns what a list holds. A single text is refused: it would pass as the list of its characters."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise StoreError(f"{values!r:.40} is not a list; put it into one: [{values!r:.40}]")
    return tuple(values)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: it holds no lone surrogates."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be found.

    Attributes:
        id: The user's id for it, a string or a 64-bit integer.
        vector: (dim,) numbers, not all zero; stored L2-normalized as float32. None only in items that were
            read without their vectors.
        label: Class name, or None where it is unknown.
        metadata: Plain JSON values under string keys.
        thumbnail: An encoded image (JPEG, PNG, WebP), or None. Reading items never loads it; see
            `Store.thumbnail`.
    """

    id: ItemId
    vector: Vectors | Sequence[float] | None = None
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = None


class SearchQuery(msgspec.Struct, frozen=True):
    """What a search asks for, besides the vectors.

    Attributes:
        k: Most hits per query vector.
        where: Filter that hits pass.
        min_similarity: Drop hits below this cosine.
        exclude: Ids of items that are never hits.
        group_by: "label" keeps the best hit of each label (items without one each stand alone).
        exact: Do not use an approximate index.
        effort: How far an approximate index looks: efSearch of HNSW (for 10 hits; more hits take more),
            nprobe of an inverted index; None uses the collection's own.
        with_metadata: False leaves labels and metadata of hits empty, which is faster.
        fingerprint: The model that made the vectors; None does not check.

    Raises:
        StoreError: k is below 1, effort out of range, or `group_by` something else.
    """

    k: int = DEFAULT_K
    where: Filter | None = None
    min_similarity: float | None = None
    exclude: tuple[ItemId, ...] = ()
    group_by: Literal["label"] | None = None
    exact: bool = False
    effort: int | None = None
    with_metadata: bool = True
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "k", whole_number("k", self.k))
        if self.k < 1:
            raise StoreError(f"k is {self.k}; ask for at least one hit")
        if self.group_by not in (None, "label"):
            raise StoreError(f"Cannot group by {self.group_by!r}; group by 'label'")
        if self.effort is not None:
            msgspec.structs.force_setattr(self, "effort", whole_number("effort", self.effort))
            if not 1 <= self.effort <= MOST_EFFORT:
                raise StoreError(f"effort is {self.effort}; it goes from 1 to {MOST_EFFORT}")
        least: Any = self.min_similarity
        if least is not None and (not isinstance(least, numbers.Real) or math.isnan(least)):
            raise StoreError(f"min_similarity is {least!r:.40}; give a number from -1 to 1")

    @classmethod
    def of(cls, query: SearchQuery | int, options: QueryArguments) -> SearchQuery:
        """The query that the arguments of `Store.search` mean."""
        if not isinstance(query, SearchQuery):
            query = cls(query)
        if "exclude" in options:
            options = {**options, "exclude": several(options["exclude"])}
        return msgspec.structs.replace(query, **options) if options else query

    @property
    def is_simple(self) -> bool:
        """Whether the hits are the nearest items that pass the filter, without further conditions."""
        return not (self.exclude or self.group_by) and self.min_similarity is None

    @property
    def is_plain(self) -> bool:
        """Whether any item may be a hit, of any similarity and label."""
        return self.is_simple and not self.where


class SearchArguments(TypedDict, total=False):
    """Keyword arguments of every search, in Python and over HTTP; see `SearchQuery`."""

    where: Filter | None
    min_similarity: float | None
    exclude: Iterable[ItemId]
    group_by: Literal["label"] | None
    exact: bool
    effort: int | None


class QueryArguments(SearchArguments, total=False):
    """All fields of a `SearchQuery` as keyword arguments."""

    k: int
    with_metadata: bool
    fingerprint: str | None


class Hit(msgspec.Struct, frozen=True):
    """One neighbour of a query; `similarity` is the cosine in [-1, 1]."""

    id: ItemId
    similarity: float
    label: str | None = None
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)


Strategy: TypeAlias = Literal["exact", "exact_subset", "approximate", "approximate_then_exact", "empty"]


class SearchPlan(msgspec.Struct, frozen=True):
    """How a search was carried out.

    Attributes:
        strategy: "exact" scans every vector; "exact_subset" scans only those that pass the filter;
            "approximate" asks the index and drops what does not pass; "approximate_then_exact" does so, finds
            too few, and scans those that pass; "empty" has no candidates.
        candidates: Number of items that could be hits; None if the store's engine does not tell.
        selectivity: `candidates` as a fraction of all items, in [0, 1]; None if the engine does not tell.
        index: The index factory string or index type of the collection.
        explored: Most rows that the approximate index compared with one query vector: those in the lists that
            an inverted index visited, or the size of a graph's candidate list (efSearch); 0 without such an
            index.
    """

    strategy: Strategy
    candidates: int | None
    selectivity: float | None
    index: str
    explored: int = 0


class SearchResult(msgspec.Struct, frozen=True):
    """Hits of each query, most similar first, and the plan that found them."""

    hits: list[list[Hit]]
    plan: SearchPlan


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a scroll; pass `next` as `after` to read on, None at the end."""

    items: list[Item]
    next: int | None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Figures about a collection.

    Attributes:
        items: Number of items.
        dim: Length of a vector.
        fingerprint: The model that made the vectors, if it was given.
        index: The index factory string.
        lsn: Log sequence number of the last write; grows by at least one with each.
        segments: Number of immutable index segments on disk.
        memtable: Rows in memory, not yet in a segment.
        dead: Rows of segments and memtable whose item was deleted or replaced.
        flushed_lsn: Last write that the segments on disk contain.
        disk_bytes: Bytes in the collection's folder.
        field_indexes: Fields with an index for filters.
        trouble: Why background work on the index failed last (it is tried again); None if it did not.
    """

    items: int
    dim: int
    fingerprint: str | None
    index: str
    lsn: int
    segments: int
    memtable: int
    dead: int
    flushed_lsn: int
    disk_bytes: int
    field_indexes: tuple[str, ...]
    trouble: str | None = None


class Store(Protocol):
    """One collection of items. Every method may be called from any thread at any time.

    A write returns once it is durable and visible: it survives the death of the process or of the machine,
    and every search that starts afterwards sees it.
    """

    @property
    def in_process(self) -> bool:
        """Whether searches run in this process, and so never wait for another machine."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> str | None:
        """The model that made the vectors, if it was given."""

    def upsert(self, items: Iterable[Item], *, fingerprint: str | None = None) -> int:
        """Stores items; one with a known id replaces the old one whole. Returns their number.

        A call with up to 20,000 items is one transaction: all of them or none are stored. A longer call is
        split into such transactions in order. If an id comes twice, the last item counts.

        Args:
            items: What to store.
            fingerprint: The model that made these vectors; None does not check.

        Raises:
            DimensionMismatch: A vector has the wrong length.
            FingerprintMismatch: The collection belongs to another model.
            StoreError: A vector is zero or not finite, an id is unusable, metadata is not plain JSON, nested
                more than 32 deep or over 65,536 bytes; `position` says which item.
            DiskFull: No space is left.
        """

    def update(self, item_id: ItemId, changes: Mapping[str, Any]) -> None:
        """Changes label and metadata in part, leaving vector and thumbnail.

        Args:
            item_id: Which item.
            changes: "label" (a string or None) and "metadata" (fields to set; None removes one: JSON merge
                patch, RFC 7396), each optional.

        Raises:
            ItemMissing: No such item.
        """

    def delete(
        self,
        ids: Iterable[ItemId] = (),
        *,
        where: Filter | None = None,
        erase: bool = False,
    ) -> int:
        """Deletes by id, by filter or both (their union), and returns the number. Unknown ids are no error.

        Args:
            ids: Items to delete.
            where: Filter of further items to delete.
            erase: Also remove every byte of them from the disk before returning (see `purge`).

        Raises:
            Unsupported: `erase` in a store that cannot; nothing is deleted then.
        """

    def purge(self) -> None:
        """Rewrites the files without any trace of deleted or replaced items. Takes a while.

        Raises:
            Unsupported: This process does not own the files.
        """

    def get(self, ids: Sequence[ItemId], *, with_vectors: bool = False) -> list[Item | None]:
        """Items in the order of `ids`, None for unknown ids; thumbnails are left out."""

    def search(
        self, vectors: Vectors, query: SearchQuery | int = DEFAULT_K, **options: Unpack[QueryArguments]
    ) -> SearchResult:
        """Finds the most similar items of each vector.

        Args:
            vectors: (dim,) or (n, dim) floats; need not be normalized.
            query: The query; a number is short for `SearchQuery(k=number)`.
            options: Fields that replace those of `query`.

        Raises:
            DimensionMismatch: A vector has the wrong length.
            FingerprintMismatch: The collection belongs to another model.
            StoreError: A vector is zero or not finite, or a field of the query is out of range.
            FilterError: The filter is not in the language.
        """

    def search_examples(
        self,
        positives: Sequence[ItemId | Vectors],
        negatives: Sequence[ItemId | Vectors] = (),
        query: SearchQuery | int = DEFAULT_K,
        **options: Unpack[QueryArguments],
    ) -> SearchResult:
        """Finds items like the positive examples and unlike the negative ones; `hits` has one list.

        The vector is 2·mean(positives) − mean(negatives), or mean(positives) without negatives. Examples
        given by id are not hits themselves. The other arguments are those of `search`.

        Raises:
            ItemMissing: An example's id is not in the store.
            StoreError: No positive example, or they cancel out.
        """

    def count(self, where: Filter | None = None) -> int:
        """Number of items, or of those that pass the filter."""

    def scroll(
        self,
        after: int | None = None,
        limit: int = 100,
        *,
        where: Filter | None = None,
        with_vectors: bool = False,
    ) -> Page:
        """Reads items in the order of their last write, `limit` at a time.

        Holds nothing open between two calls. An item written during a scroll may be seen again later in it.
        """

    def scan(self, *, where: Filter | None = None, with_vectors: bool = False) -> Iterator[Item]:
        """All items, by scrolling. An item written after the scan began is left out."""

    def sample(self, count: int, *, with_vectors: bool = False) -> list[Item]:
        """Items drawn at random from the whole collection, each once, in the order of their last write.

        All of them if there are fewer than `count`; else at most `count`, and fewer where long runs in that
        order were deleted. Takes no longer in a large collection than in a small one.
        """

    def thumbnail(self, item_id: ItemId) -> bytes | None:
        """The item's thumbnail; None if the item or its thumbnail does not exist."""

    def labels(self, limit: int = 1000) -> dict[str, int]:
        """Labels with their number of items, most frequent first."""

    def create_field_index(self, field: str) -> None:
        """Makes filters on `field` ("label" or "metadata.NAME") fast; does nothing if the index exists."""

    def drop_field_index(self, field: str) -> None:
        """Undoes `create_field_index`; does nothing if there is no such index."""

    def flush(self) -> None:
        """Writes the part of the index that is only in memory to disk, so that the next start is quick.

        Writes are durable without it.
        """

    def stats(self) -> StoreStats:
        """Figures about the collection."""

    def close(self) -> None:
        """Ends background work and releases the folder; a second call does nothing."""
