"""Reads and searches the rows of one collection.

Each row has the ascending number (LSN) of the write that stored it. Milvus returns rows in no fixed order and
at most 16,384 at a time, so rows are read by windows of these numbers. A window starts as wide as the number
of rows wanted, and grows where few rows pass.

Milvus searches, unless an exact answer is wanted of an approximate index: then vectors are compared here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from serve.store.items import best_of_each_label, check_id
from serve.store.milvus.engine import CollectionCalls
from serve.store.milvus.expressions import all_of, expression, keys_in, labels_in
from serve.store.milvus.schema import MilvusDefinition, Row, id_of, text_of
from serve.store.types import (
    Hit,
    ItemId,
    SearchPlan,
    SearchQuery,
    SearchResult,
    StoreError,
    Strategy,
    Unsupported,
    Vectors,
)

MOST_ROWS = 16_384
"""Most rows that Milvus returns for one query or search."""

_IDS_A_QUERY = 1_000
_NUMBERS_A_QUERY = 10_000


class RowReader:
    """Reads one collection; `last` returns the LSN of its last write."""

    def __init__(self, call: CollectionCalls, last: Callable[[], int]) -> None:
        self._call = call
        self._last = last

    def by_id(self, ids: Sequence[ItemId], fields: Sequence[str]) -> dict[str, Row]:
        """Rows of the ids that exist, by key."""
        found: dict[str, Row] = {}
        for start in range(0, len(ids), _IDS_A_QUERY):
            asked = keys_in(ids[start : start + _IDS_A_QUERY])
            rows = self._query(asked, [*fields, "id"])
            found.update({row["id"]: row for row in rows})
        return found

    def count(self, condition: str) -> int:
        """Number of rows that pass."""
        answer = self._call("query", filter=condition, output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    def any_above(self, lsn: int) -> bool:
        """Whether a row was written after that LSN."""
        return bool(self._query(f"sequence > {lsn}", ["id"], 1))

    def after(self, number: int, limit: int, condition: str, fields: Sequence[str]) -> list[Row]:
        """The first `limit` rows written after `number`, ascending; their fields include `sequence`.

        Rows that share the last row's number are included, so that the next read can start after it.
        """
        found: list[Row] = []
        low, last, width = number, self._last(), limit
        while low < last and len(found) < limit:
            high = min(low + width, last)
            window = f"sequence > {low} and sequence <= {high}"
            rows = self._query(all_of(window, condition), [*fields, "id", "sequence"], MOST_ROWS)
            if len(rows) == MOST_ROWS and high > low + 1:
                width = max(1, (high - low) // 2)
                continue
            rows.sort(key=lambda row: (row["sequence"], row["id"]))
            found += _first(rows, limit - len(found))
            low = high
            if len(rows) < limit // 4 + 1:
                width *= 4
        return found

    def numbered(self, numbers: Sequence[int], fields: Sequence[str]) -> list[Row]:
        """Rows whose last write has one of these numbers, in any order; their fields include `sequence`."""
        found: list[Row] = []
        for start in range(0, len(numbers), _NUMBERS_A_QUERY):
            listed = ", ".join(map(str, numbers[start : start + _NUMBERS_A_QUERY]))
            found += self._query(f"sequence in [{listed}]", [*fields, "id", "sequence"])
        return found

    def everything(self, condition: str, fields: Sequence[str]) -> list[Row]:
        """All rows that pass, in any order."""
        if self._call.engine.can.embedded:  # it has no limit, and reads every row for each window
            return self._query(condition, [*fields, "id"])
        return [row for page in self.pages(condition, fields) for row in page]

    def pages(self, condition: str, fields: Sequence[str], size: int = 1_000) -> Iterator[list[Row]]:
        """All rows that pass, in pages."""
        rows = self.after(0, size, condition, fields)
        while rows:
            yield rows
            if len(rows) < size:
                return
            rows = self.after(rows[-1]["sequence"], size, condition, fields)

    def _query(self, condition: str, fields: Sequence[str], limit: int | None = None) -> list[Row]:
        options = {} if limit is None else {"limit": limit}
        return list(self._call("query", filter=condition, output_fields=list(fields), **options))


def _first(rows: list[Row], count: int) -> list[Row]:
    if len(rows) <= count:
        return rows
    end = count
    while end < len(rows) and rows[end]["sequence"] == rows[count - 1]["sequence"]:
        end += 1
    return rows[:end]


class LsnCounter:
    """Counts the writes of one collection. Not thread-safe: the store calls it under its lock for writes.

    Milvus has no such counter. This one continues from the highest number in the collection, which it reads
    again before each write to a server, where other processes may write. Two processes that write at the same
    moment may take the same number; readers handle that.
    """

    def __init__(self, reader: RowReader, *, alone: bool) -> None:
        self._reader = reader
        self._alone = alone
        self._last: int | None = None

    def last(self) -> int:
        """LSN of the last write that this process knows or can see."""
        if self._last is None:
            # Numbers are distinct, so the highest is at least the number of items.
            self._last = self._highest(self._reader.count(""))
        elif not self._alone:
            self._last = self._highest(self._last)
        return self._last

    def take(self, count: int) -> int:
        """Reserves `count` numbers in a row; returns the first."""
        first = self.last() + 1
        self._last = first + count - 1
        return first

    def _highest(self, low: int) -> int:
        """The highest number in the collection, or `low` where none is above it."""
        step = 1
        while self._reader.any_above(low + step - 1):
            low, step = low + step, 2 * step
        # The answer is from `low` to low + step - 1.
        return low + bisect_left(
            range(low, low + step - 1), True, key=lambda number: not self._reader.any_above(number)
        )


# Most float32 numbers that an exact search over an approximate index fetches: 256 MiB.
_MOST_FETCHED = 2**26
# Selectivity up to which a filter leaves too few items for milvus-lite's approximate indexes.
_SELECTIVE = 0.25
# Most hits of one message.
_MOST_HITS = 200_000


class MilvusSearcher:
    """Searches one collection."""

    def __init__(self, call: CollectionCalls, definition: MilvusDefinition, reader: RowReader) -> None:
        self._call = call
        self._definition = definition
        self._reader = reader

    def run(self, vectors: Vectors, query: SearchQuery) -> SearchResult:
        """Searches by vectors of shape (n, dim) and unit length; see `Store.search`.

        Raises:
            StoreError: k is larger than Milvus takes.
            Unsupported: An exact search over an approximate index has too many vectors to look at.
        """
        if query.k > MOST_ROWS:
            raise StoreError(f"k is {query.k}; Milvus returns at most {MOST_ROWS:,} neighbours")
        where = expression(query.where, self._call.engine.can)
        condition = _excluding(where, [check_id(value) for value in query.exclude])
        hits, candidates = self._find(vectors, query, condition, filtered=bool(where))
        if query.group_by is not None:
            # Milvus's own grouping looks at a few times `k` neighbours and counts absent labels as one.
            hits = [
                best_of_each_label(
                    first, query, partial(self._further, vectors[at : at + 1], query, condition)
                )
                for at, first in enumerate(hits)
            ]
        return SearchResult(hits, self._plan(query, hits, candidates, filtered=bool(where)))

    def _find(
        self, vectors: Vectors, query: SearchQuery, condition: str, *, filtered: bool
    ) -> tuple[list[list[Hit]], int | None]:
        """Hits of each vector, and the number of candidates if they were compared here.

        `condition` stands for the query's filter and its excluded ids; with `filtered`, few rows may pass it.
        """
        if not len(vectors):
            return [], None
        if self._compares_here(query, condition, filtered=filtered):
            return self._compared(vectors, query, condition)
        hits = self._asked(vectors, query, condition)
        fewest = min(map(len, hits))
        if fewest < query.k and not self._definition.index.exact:
            # An approximate index may return too few hits, above all the coarse one that a server uses for
            # recent items.
            passing = self._reader.count(condition)
            if fewest < passing <= self._most_fetched:
                return self._compared(vectors, query, condition)
        return [_similar_enough(found, query.min_similarity) for found in hits], None

    def _further(
        self, vector: Vectors, query: SearchQuery, condition: str, labels: list[str], ids: list[ItemId]
    ) -> list[Hit]:
        """Hits of one vector, of shape (1, dim), outside these labels and ids."""
        rest = _excluding(all_of(condition, labels_in(labels, negate=True)), ids)
        return self._find(vector, query, rest, filtered=True)[0][0]

    def _compares_here(self, query: SearchQuery, condition: str, *, filtered: bool) -> bool:
        """Whether to fetch and compare the vectors that pass, instead of asking the index.

        milvus-lite walks its graph over passing rows only, so its recall falls as fewer pass. A server plans
        filtered searches itself.
        """
        if self._definition.index.exact:
            return False
        if query.exact:
            return True
        if not (filtered and self._call.engine.can.embedded):
            return False
        passing = self._reader.count(condition)
        few = passing <= _SELECTIVE * self._reader.count("")
        return few and passing <= self._most_fetched

    @property
    def _most_fetched(self) -> int:
        return _MOST_FETCHED // self._definition.dim

    def _asked(self, vectors: Vectors, query: SearchQuery, condition: str) -> list[list[Hit]]:
        """Asks Milvus."""
        parameters = self._definition.index.search_parameters(query.k, query.effort)
        at_a_time = max(1, _MOST_HITS // query.k)
        found: list[list[Hit]] = []
        for start in range(0, len(vectors), at_a_time):
            answers = self._call(
                "search",
                data=list(vectors[start : start + at_a_time]),
                anns_field="vector",
                limit=query.k,
                filter=condition,
                output_fields=_fields(query),
                search_params={"metric_type": "COSINE", "params": parameters},
            )
            found += [
                [_hit(hit["id"], float(hit["distance"]), hit["entity"]) for hit in answer]
                for answer in answers
            ]
        return found

    def _compared(self, vectors: Vectors, query: SearchQuery, condition: str) -> tuple[list[list[Hit]], int]:
        """Fetches all vectors that pass and compares them here; returns the hits and the vectors' number."""
        count = self._reader.count(condition)
        if count > self._most_fetched:
            raise Unsupported(
                f"An exact search over the index {self._definition.index} would fetch {count:,} vectors, "
                f"more than {self._most_fetched:,}; narrow the filter, or build it with the index FLAT"
            )
        rows = self._reader.everything(condition, ["vector", *_fields(query)])
        return _best(vectors, query, rows), len(rows)

    def _plan(
        self, query: SearchQuery, hits: list[list[Hit]], candidates: int | None, *, filtered: bool
    ) -> SearchPlan:
        strategy: Strategy = "approximate"
        if query.min_similarity is None and hits and not any(hits):
            strategy, candidates = "empty", 0
        elif candidates is not None or self._definition.index.exact:
            strategy = "exact_subset" if filtered else "exact"
        return SearchPlan(strategy, candidates, 0.0 if candidates == 0 else None, str(self._definition.index))


def _excluding(condition: str, ids: Sequence[ItemId]) -> str:
    """A condition that these ids do not pass."""
    return all_of(condition, keys_in(ids, negate=True))


def _fields(query: SearchQuery) -> list[str]:
    if query.with_metadata:
        return ["label", "metadata"]
    # milvus-lite returns every field where none is named.
    return ["label"] if query.group_by is not None else ["id"]


def _hit(key: str, similarity: float, row: Row) -> Hit:
    # Rounding may carry the cosine past 1.
    return Hit(
        id_of(key), min(1.0, max(-1.0, similarity)), text_of(row.get("label")), row.get("metadata") or {}
    )


def _best(vectors: Vectors, query: SearchQuery, rows: list[Row]) -> list[list[Hit]]:
    """The best of these rows for each vector."""
    if not rows:
        return [[] for _ in vectors]
    similarities = vectors @ np.asarray([row["vector"] for row in rows], dtype=np.float32).T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, : query.k]
    return [
        _similar_enough(
            [_hit(rows[at]["id"], float(line[at]), rows[at]) for at in best], query.min_similarity
        )
        for line, best in zip(similarities, order.tolist(), strict=True)
    ]


def _similar_enough(hits: list[Hit], least: float | None) -> list[Hit]:
    return hits if least is None else [hit for hit in hits if hit.similarity >= least]
