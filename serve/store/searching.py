"""One search from normalized queries to hits: filter masks, neighbours, rows of the hits, groups.

The index and the database are two views of one truth, and a search looks at both. When a write falls between
the two looks, the search starts over on the newer state: an item that is being replaced is always found, as
it was or as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from serve.store import exact, filters
from serve.store.candidates import Candidates
from serve.store.commits import Commits
from serve.store.database import Database
from serve.store.filters import EVERYTHING, Condition
from serve.store.index import IndexState
from serve.store.parts import How, Mask
from serve.store.protocol import Hit, ItemId, SearchPlan, SearchResult, Vectors
from serve.store.rows import Keys, keys_of_ids, read_records

# Lock-free tries before one that holds writers back for its duration.
_TRIES = 4


class Request(msgspec.Struct, frozen=True):
    """A checked search; the fields are those of `Store.search`."""

    queries: Vectors
    k: int
    condition: Condition
    min_similarity: float | None
    exclude: tuple[ItemId, ...]
    group_by_label: bool
    how: How
    with_metadata: bool
    index: str

    @property
    def is_plain(self) -> bool:
        """Whether there is one query and nothing else to heed."""
        return (
            len(self.queries) == 1
            and self.condition is EVERYTHING
            and self.min_similarity is None
            and not self.exclude
            and not self.group_by_label
        )


class _StateMoved(Exception):  # noqa: N818  (not an error: the search starts over)
    """A write came between the look at the index and the look at the database."""


class Searching:
    """Searches one collection; `state` gives its current searchable state."""

    def __init__(
        self,
        database: Database,
        state: Callable[[], IndexState],
        candidates: Candidates,
        commits: Commits | None,
        threads: int,
    ) -> None:
        self._database = database
        self._state = state
        self._candidates = candidates
        self._commits = commits
        self._threads = threads

    def run(self, request: Request) -> SearchResult:
        """Carries out a search."""
        exact.use_threads(self._threads)
        for _ in range(_TRIES):
            try:
                return self._once(request, self._state())
            except _StateMoved:
                continue
        with self._commits.paused() if self._commits else contextlib.nullcontext():
            return self._once(request, self._state())

    def _once(self, request: Request, state: IndexState) -> SearchResult:
        if request.is_plain and self._commits is not None:
            result = self._nearest(request, state)
            if result is not None:
                return result
        excluded = self._keys(request.exclude)
        hits, plan = self._find(request, state, request.queries, excluded)
        if request.group_by_label:
            hits = [
                self._grouped(request, state, request.queries[at : at + 1], first, excluded)
                for at, first in enumerate(hits)
            ]
        return SearchResult(hits, plan)

    def _nearest(self, request: Request, state: IndexState) -> SearchResult | None:
        """The search of one query without conditions, straight from rows to their records.

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
            similarities, rows, plan = part.find(request.queries, request.k, None, request.how)
            plans.append(plan)
            similarities, rows = similarities[0], rows[0]
            if rows[-1] < 0:
                similarities, rows = similarities[rows >= 0], rows[rows >= 0]
            edited = part.records.edited
            if edited and request.with_metadata and not edited.isdisjoint(part.keys[rows].tolist()):
                return None
            records = part.records.take(rows, ids_only=not request.with_metadata)
            if records is None:
                return None
            hits += map(_hit, similarities.tolist(), records)
        if len(plans) > 1:
            hits.sort(key=lambda hit: -hit.similarity)
            del hits[request.k :]
        return SearchResult([hits], state.plan(plans, request.index))

    def _find(
        self,
        request: Request,
        state: IndexState,
        queries: Vectors,
        excluded: Keys,
        minus: Condition | None = None,
    ) -> tuple[list[list[Hit]], SearchPlan]:
        """Hits of each query among what passes the filter and does not fulfil `minus`."""
        masks = self._masks(request.condition, state)
        if minus is not None:
            masks = [
                ~out if mask is None else mask & ~out
                for mask, out in zip(masks, self._masks(minus, state), strict=True)
                if out is not None
            ]
        similarities, keys, plan = state.search(
            queries,
            request.k + len(excluded),
            masks,
            request.how,
            request.index,
        )
        if len(excluded):
            out = np.isin(keys, excluded)
            similarities, keys = exact.merge([(similarities, np.where(out, -1, keys))], request.k)
        if request.min_similarity is not None:
            keys = np.where(similarities < request.min_similarity, -1, keys)
        found = self._records(state, keys, request)
        return [self._hits(*row, found) for row in zip(similarities, keys, strict=True)], plan

    def _masks(self, condition: Condition, state: IndexState) -> list[Mask | None]:
        masks = self._candidates.masks(condition, state)
        if masks is None:
            raise _StateMoved
        return masks

    def _keys(self, ids: tuple[ItemId, ...]) -> Keys:
        if not ids:
            return np.empty(0, np.int64)
        with self._database.read() as connection:
            return keys_of_ids(connection, ids)

    def _records(self, state: IndexState, keys: Keys, request: Request) -> dict[int, list[Any]]:
        """Of each hit by key: its id and, if they are wanted, label and metadata."""
        if self._commits is None:  # another process writes, and only the database knows what
            found: dict[int, list[Any]] = {}
            others: list[int] = np.unique(keys[keys >= 0]).tolist()
        else:
            ids_only = not (request.with_metadata or request.group_by_label)
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

    def _grouped(
        self, request: Request, state: IndexState, query: Vectors, hits: list[Hit], excluded: Keys
    ) -> list[Hit]:
        """The best hit of each label, `k` in all, starting from the `k` best hits.

        Each further round asks for the nearest items outside the labels found so far, so it brings at least
        one new label; its best of each label is the best of all, because earlier rounds had none of them.
        """
        best: list[Hit] = []
        labels: set[str] = set()
        while True:
            for hit in hits:
                if hit.label is None or hit.label not in labels:
                    best.append(hit)
                if hit.label is not None:
                    labels.add(hit.label)
            if len(hits) < request.k or len(best) >= request.k:
                return best[: request.k]
            lone = [hit.id for hit in best if hit.label is None]
            seen = filters.condition({"or": [{"label": {"in": sorted(labels)}}, {"id": {"in": lone}}]})
            hits = self._find(request, state, query, excluded, minus=seen)[0][0]


def _hit(similarity: float, record: list[Any]) -> Hit:
    """A hit from a similarity and a record: the id alone, or id, label and metadata."""
    # Rounding may carry the product of two unit vectors past 1.
    cosine = 1.0 if similarity > 1.0 else max(similarity, -1.0)
    if len(record) == 1:
        return Hit(record[0], cosine)
    return Hit(record[0], cosine, record[1], record[2] or {})
