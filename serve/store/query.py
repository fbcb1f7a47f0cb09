"""One search, from normalized vectors to hits: rows that pass the filter, neighbours, records, groups.

A search reads the index and the database at the same version. Where a write comes between, it starts over on
the newer version. So an item that is being replaced is always found, in its old or its new state, and a hit's
label is the one that passed the filter.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from serve.store import filters
from serve.store.ann import flat
from serve.store.database import Database, last_lsn
from serve.store.filters import Condition
from serve.store.items import best_of_each_label, check_id
from serve.store.rows import read_records, row_ids_of
from serve.store.types import (
    NO_ROW_IDS,
    Hit,
    ItemId,
    RowIds,
    SearchPlan,
    SearchQuery,
    SearchResult,
    Selection,
    Vectors,
)
from serve.store.version import CurrentVersion

# Tries without a lock before one that holds writers back.
_TRIES = 4


class _VersionChanged(Exception):  # noqa: N818  (not an error: the search starts over)
    """A write came between the look at the index and the look at the database."""


def run_query(
    database: Database, current: CurrentVersion, index: str, vectors: Vectors, query: SearchQuery
) -> SearchResult:
    """Searches by (n, dim) vectors of unit length; see `Store.search`. The plan names the `index`."""
    condition = filters.condition(query.where)
    for _ in range(_TRIES):
        try:
            return _once(database, current, index, vectors, query, condition)
        except _VersionChanged:
            continue
    with current.commits.paused():
        current.catch_up()
        return _once(database, current, index, vectors, query, condition)


def _once(
    database: Database,
    current: CurrentVersion,
    index: str,
    vectors: Vectors,
    query: SearchQuery,
    condition: Condition,
) -> SearchResult:
    with contextlib.ExitStack() as opened:
        return _VersionSearch(database, current, query, index, opened).run(vectors, condition)


class _VersionSearch:
    """One search of one version.

    Every read of the database is at that version; where another process writes, at that of the first read.
    """

    def __init__(
        self,
        database: Database,
        current: CurrentVersion,
        query: SearchQuery,
        index: str,
        opened: contextlib.ExitStack,
    ) -> None:
        self._database = database
        self._filters = current.filters
        self._version = current.version
        self._query = query
        self._index = index
        self._excluded = NO_ROW_IDS
        self._opened = opened
        self._connection: sqlite3.Connection | None = None

    def run(self, vectors: Vectors, condition: Condition) -> SearchResult:
        query = self._query
        passing = self._filters.passing(condition, self._version, self._connect)
        if len(vectors) == 1 and query.is_simple and not self._database.read_only:
            result = self._nearest(vectors, passing)
            if result is not None:
                return result
        if query.exclude:
            self._excluded = row_ids_of(self._connect(), [check_id(value) for value in query.exclude])
        hits, plan = self._find(vectors, passing)
        if query.group_by is not None:
            hits = [
                best_of_each_label(first, query, partial(self._further, vectors[at : at + 1], passing))
                for at, first in enumerate(hits)
            ]
        return SearchResult(hits, plan)

    def _nearest(self, vectors: Vectors, passing: Sequence[Selection | None]) -> SearchResult | None:
        """The hits of one vector, read by their positions in the segments.

        The general way merges arrays and finds records by row id, which costs as much as the search of a
        graph. None where a hit's record has to be read from the database.
        """
        query = self._query
        hits: list[Hit] = []
        plans = []
        for segment, selection in zip(self._version.segments, passing, strict=True):
            if segment.live_count == 0:
                continue
            if segment.records is None:
                return None
            similarities, rows, plan = segment.find(vectors, query.k, selection, query)
            plans.append(plan)
            if plan.candidates == 0:
                continue
            similarities, rows = similarities[0], rows[0]
            if rows[-1] < 0:
                similarities, rows = similarities[rows >= 0], rows[rows >= 0]
            edited = segment.records.edited
            if edited and query.with_metadata and not edited.isdisjoint(segment.row_ids[rows].tolist()):
                return None
            records = segment.records.take(rows, ids_only=not query.with_metadata)
            if records is None:
                return None
            hits += map(_hit, similarities.tolist(), records)
        if len(plans) > 1:
            hits.sort(key=lambda hit: -hit.similarity)
            del hits[query.k :]
        return SearchResult([hits], self._version.plan(plans, self._index))

    def _connect(self) -> sqlite3.Connection:
        """A connection that sees the version until the search ends; or raises `_VersionChanged`."""
        if self._connection is None:
            self._connection = self._opened.enter_context(self._database.read_transaction())
            if not self._database.read_only and last_lsn(self._connection) != self._version.lsn:
                raise _VersionChanged
        return self._connection

    def _find(
        self, vectors: Vectors, passing: Sequence[Selection | None]
    ) -> tuple[list[list[Hit]], SearchPlan]:
        """Hits of each vector among the rows that pass."""
        query, most = self._query, self._query.k + len(self._excluded)
        similarities, row_ids, plan = self._version.search(vectors, most, passing, query, self._index)
        if len(self._excluded):
            out = np.isin(row_ids, self._excluded)
            similarities, row_ids = flat.merge([(similarities, np.where(out, -1, row_ids))], query.k)
        if query.min_similarity is not None:
            row_ids = np.where(similarities < query.min_similarity, -1, row_ids)
        records = self._records(row_ids)
        hits = [
            [
                _hit(similarity, records[row_id])
                for similarity, row_id in zip(line.tolist(), ids.tolist(), strict=True)
                if row_id in records
            ]
            for line, ids in zip(similarities, row_ids, strict=True)
        ]
        return hits, plan

    def _further(
        self, vector: Vectors, passing: Sequence[Selection | None], labels: list[str], ids: list[ItemId]
    ) -> list[Hit]:
        """Hits of one vector, of shape (1, dim), outside these labels and ids."""
        seen = filters.condition({"or": [{"label": {"in": labels}}, {"id": {"in": ids}}]})
        rest: list[Selection | None] = []
        for segment, rows, out in zip(
            self._version.segments,
            passing,
            self._filters.passing(seen, self._version, self._connect),
            strict=True,
        ):
            mask = np.full(len(segment), rows is None)
            if rows is not None:
                mask[rows] = True
            mask[out] = False
            rest.append(mask)
        return self._find(vector, rest)[0][0]

    def _records(self, row_ids: RowIds) -> dict[int, list[Any]]:
        """By row id, each hit's item id and, if the query wants them, label and metadata."""
        if self._database.read_only:  # another process may have edited any row
            found: dict[int, list[Any]] = {}
            others: list[int] = np.unique(row_ids[row_ids >= 0]).tolist()
        else:
            ids_only = not (self._query.with_metadata or self._query.group_by)
            found, others = self._version.records(row_ids, ids_only=ids_only)
        if others:
            found.update(read_records(self._connect(), others))
        return found


def _hit(similarity: float, record: list[Any]) -> Hit:
    """A hit from a similarity and a record, which is the id alone, or id, label and metadata."""
    # Rounding may carry the product of two unit vectors past 1.
    cosine = 1.0 if similarity > 1.0 else max(similarity, -1.0)
    if len(record) == 1:
        return Hit(record[0], cosine)
    return Hit(record[0], cosine, record[1], record[2] or {})
