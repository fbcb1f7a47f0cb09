"""One search from normalized vectors to hits: filter masks, neighbours, rows of the hits, groups.

The index and the database are two views of one truth, and a search looks at both. All its looks at the
database are at one version, that of the index; when a write has come between, the search starts over on the
newer state. So an item that is being replaced is always found, as it was or as it is, and a hit's label is
the one that passed the filter.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from serve.store import exact, filters
from serve.store.candidates import Candidates
from serve.store.commits import Commits
from serve.store.database import Database
from serve.store.filters import Condition
from serve.store.grouping import best_of_each_label
from serve.store.index import IndexState
from serve.store.parts import Mask
from serve.store.protocol import Hit, ItemId, SearchPlan, SearchQuery, SearchResult, Vectors
from serve.store.rows import NO_KEYS, Keys, check_id, keys_of_ids, read_records, sequence

# Lock-free tries before one that holds writers back for its duration.
_TRIES = 4


class _StateMoved(Exception):  # noqa: N818  (not an error: the search starts over)
    """A write came between the look at the index and the look at the database."""


class _View:
    """The database at the version of a state; where another process writes, at that of the first look."""

    def __init__(self, database: Database, state: IndexState, *, alone: bool) -> None:
        self._database = database
        self._state = state
        self._alone = alone
        self._opened = contextlib.ExitStack()
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def connect(self) -> sqlite3.Connection:
        """A connection that sees that version until the view is closed.

        Raises:
            _StateMoved: The database is at another version.
        """
        if self._connection is None:
            self._connection = self._opened.enter_context(self._database.read_transaction())
            if self._alone and sequence(self._connection) != self._state.sequence:
                raise _StateMoved
        return self._connection


class Searching:
    """Searches one collection.

    Args:
        database: Its truth.
        state: Gives its current searchable state.
        candidates: Its filter masks.
        commits: What writes to it; None where another process does.
        catch_up: Brings the state to the database's version where it has fallen behind; called with writes
            excluded.
        index: Its index factory string.
        threads: OpenMP threads of a search.
    """

    def __init__(
        self,
        database: Database,
        state: Callable[[], IndexState],
        candidates: Candidates,
        commits: Commits | None,
        catch_up: Callable[[], None],
        index: str,
        threads: int,
    ) -> None:
        self._database = database
        self._state = state
        self._candidates = candidates
        self._commits = commits
        self._catch_up = catch_up
        self._index = index
        self._threads = threads

    def run(self, vectors: Vectors, query: SearchQuery) -> SearchResult:
        """Searches by vectors of shape (n, dim) and unit length; see `Store.search`."""
        exact.use_threads(self._threads)
        condition = filters.condition(query.where)
        for _ in range(_TRIES):
            try:
                return self._once(self._state(), vectors, query, condition)
            except _StateMoved:
                continue
        with self._commits.paused() if self._commits else contextlib.nullcontext():
            self._catch_up()
            return self._once(self._state(), vectors, query, condition)

    def _once(
        self, state: IndexState, vectors: Vectors, query: SearchQuery, condition: Condition
    ) -> SearchResult:
        if len(vectors) == 1 and query.is_plain and self._commits is not None:
            result = self._nearest(state, vectors, query)
            if result is not None:
                return result
        with _View(self._database, state, alone=self._commits is not None) as view:
            masks = self._candidates.masks(condition, state, view.connect)
            excluded = NO_KEYS
            if query.exclude:
                excluded = keys_of_ids(view.connect(), [check_id(value) for value in query.exclude])
            hits, plan = self._find(state, view, vectors, query, masks, excluded)
            if query.group_by is not None:
                further = partial(self._further, state, view, query, masks, excluded)
                hits = [
                    best_of_each_label(first, query, partial(further, vectors[at : at + 1]))
                    for at, first in enumerate(hits)
                ]
        return SearchResult(hits, plan)

    def _nearest(self, state: IndexState, vectors: Vectors, query: SearchQuery) -> SearchResult | None:
        """The search by one vector without conditions, straight from rows to their records.

        The general way goes by keys, through merged arrays and the database; that costs as much as a graph's
        search. None where a hit's record has to be read from the database.
        """
        hits: list[Hit] = []
        plans = []
        for part in state.parts:
            if part.live_count == 0:
                continue
            if part.records is None:
                return None
            similarities, rows, plan = part.find(vectors, query.k, None, query)
            plans.append(plan)
            similarities, rows = similarities[0], rows[0]
            if rows[-1] < 0:
                similarities, rows = similarities[rows >= 0], rows[rows >= 0]
            edited = part.records.edited
            if edited and query.with_metadata and not edited.isdisjoint(part.keys[rows].tolist()):
                return None
            records = part.records.take(rows, ids_only=not query.with_metadata)
            if records is None:
                return None
            hits += map(_hit, similarities.tolist(), records)
        if len(plans) > 1:
            hits.sort(key=lambda hit: -hit.similarity)
            del hits[query.k :]
        return SearchResult([hits], state.plan(plans, self._index))

    def _find(
        self,
        state: IndexState,
        view: _View,
        vectors: Vectors,
        query: SearchQuery,
        masks: Sequence[Mask | None],
        excluded: Keys,
    ) -> tuple[list[list[Hit]], SearchPlan]:
        """Hits of each vector among the rows that pass."""
        similarities, keys, plan = state.search(vectors, query.k + len(excluded), masks, query, self._index)
        if len(excluded):
            out = np.isin(keys, excluded)
            similarities, keys = exact.merge([(similarities, np.where(out, -1, keys))], query.k)
        if query.min_similarity is not None:
            keys = np.where(similarities < query.min_similarity, -1, keys)
        found = self._records(state, view, keys, query)
        return [self._hits(*row, found) for row in zip(similarities, keys, strict=True)], plan

    def _further(
        self,
        state: IndexState,
        view: _View,
        query: SearchQuery,
        masks: Sequence[Mask | None],
        excluded: Keys,
        vector: Vectors,
        labels: list[str],
        ids: list[ItemId],
    ) -> list[Hit]:
        """Hits of one vector, of shape (1, dim), outside these labels and ids."""
        seen = filters.condition({"or": [{"label": {"in": labels}}, {"id": {"in": ids}}]})
        rest = [
            ~out if mask is None else mask & ~out
            for mask, out in zip(masks, self._candidates.masks(seen, state, view.connect), strict=True)
            if out is not None
        ]
        return self._find(state, view, vector, query, rest, excluded)[0][0]

    def _records(
        self, state: IndexState, view: _View, keys: Keys, query: SearchQuery
    ) -> dict[int, list[Any]]:
        """Of each hit by key: its id and, if they are wanted, label and metadata."""
        if self._commits is None:  # another process writes, and only the database knows what
            found: dict[int, list[Any]] = {}
            others: list[int] = np.unique(keys[keys >= 0]).tolist()
        else:
            ids_only = not (query.with_metadata or query.group_by)
            found, others = state.records(keys, ids_only=ids_only)
        if others:
            found.update(read_records(view.connect(), others))
        return found

    def _hits(self, similarities: Vectors, keys: Keys, found: dict[int, list[Any]]) -> list[Hit]:
        hits = []
        for similarity, key in zip(similarities.tolist(), keys.tolist(), strict=True):
            row = found.get(key)
            if row is not None:
                hits.append(_hit(similarity, row))
        return hits


def _hit(similarity: float, record: list[Any]) -> Hit:
    """A hit from a similarity and a record: the id alone, or id, label and metadata."""
    # Rounding may carry the product of two unit vectors past 1.
    cosine = 1.0 if similarity > 1.0 else max(similarity, -1.0)
    if len(record) == 1:
        return Hit(record[0], cosine)
    return Hit(record[0], cosine, record[1], record[2] or {})
