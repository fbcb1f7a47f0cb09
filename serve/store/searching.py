"""One search from normalized vectors to hits: filter masks, neighbours, rows of the hits, groups.

The index and the database are two views of one truth, and a search looks at both. When a write falls between
the two looks, the search starts over on the newer state: an item that is being replaced is always found, as
it was or as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from serve.store.rows import NO_KEYS, Keys, check_id, keys_of_ids, read_records

# Lock-free tries before one that holds writers back for its duration.
_TRIES = 4


class _StateMoved(Exception):  # noqa: N818  (not an error: the search starts over)
    """A write came between the look at the index and the look at the database."""


class Searching:
    """Searches one collection.

    Args:
        database: Its truth.
        state: Gives its current searchable state.
        candidates: Its filter masks.
        commits: What writes to it; None where another process does.
        index: Its index factory string.
        threads: OpenMP threads of a search.
    """

    def __init__(
        self,
        database: Database,
        state: Callable[[], IndexState],
        candidates: Candidates,
        commits: Commits | None,
        index: str,
        threads: int,
    ) -> None:
        self._database = database
        self._state = state
        self._candidates = candidates
        self._commits = commits
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
            return self._once(self._state(), vectors, query, condition)

    def _once(
        self, state: IndexState, vectors: Vectors, query: SearchQuery, condition: Condition
    ) -> SearchResult:
        if len(vectors) == 1 and query.is_plain and self._commits is not None:
            result = self._nearest(state, vectors, query)
            if result is not None:
                return result
        masks = self._masks(condition, state)
        excluded = self._keys(query.exclude)
        hits, plan = self._find(state, vectors, query, masks, excluded)
        if query.group_by is not None:
            hits = [
                best_of_each_label(
                    first, query, partial(self._further, state, vectors[at : at + 1], query, masks, excluded)
                )
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
        found = self._records(state, keys, query)
        return [self._hits(*row, found) for row in zip(similarities, keys, strict=True)], plan

    def _further(
        self,
        state: IndexState,
        vector: Vectors,
        query: SearchQuery,
        masks: Sequence[Mask | None],
        excluded: Keys,
        labels: list[str],
        ids: list[ItemId],
    ) -> list[Hit]:
        """Hits of one vector, of shape (1, dim), outside these labels and ids."""
        seen = filters.condition({"or": [{"label": {"in": labels}}, {"id": {"in": ids}}]})
        rest = [
            ~out if mask is None else mask & ~out
            for mask, out in zip(masks, self._masks(seen, state), strict=True)
            if out is not None
        ]
        return self._find(state, vector, query, rest, excluded)[0][0]

    def _masks(self, condition: Condition, state: IndexState) -> list[Mask | None]:
        masks = self._candidates.masks(condition, state)
        if masks is None:
            raise _StateMoved
        return masks

    def _keys(self, ids: Sequence[ItemId]) -> Keys:
        if not ids:
            return NO_KEYS
        with self._database.read() as connection:
            return keys_of_ids(connection, [check_id(value) for value in ids])

    def _records(self, state: IndexState, keys: Keys, query: SearchQuery) -> dict[int, list[Any]]:
        """Of each hit by key: its id and, if they are wanted, label and metadata."""
        if self._commits is None:  # another process writes, and only the database knows what
            found: dict[int, list[Any]] = {}
            others: list[int] = np.unique(keys[keys >= 0]).tolist()
        else:
            ids_only = not (query.with_metadata or query.group_by)
            found, others = state.records(keys, ids_only=ids_only)
        if others:
            with self._database.read() as connection:
                rows = read_records(connection, others)
            if len(rows) < len(others) and self._commits is not None:
                raise _StateMoved
            found.update(rows)
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
