"""Segments, which hold the rows of a collection's index, and versions, the states that searches see.

A segment lies on disk (memory-mapped, perhaps with an approximate index) or in memory: a memtable of recent
rows. Its rows never change; which of them are dead is a mask, with which a new `Segment` replaces the old.

A `Version` is an immutable set of segments. Each commit builds the next one and swaps it in; a search takes
the current one once and works on it undisturbed. Nothing is locked, and nothing that a reader sees changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
import numpy as np

from serve.store.ann import flat
from serve.store.ann.device import DeviceScan
from serve.store.database import AddedRows, WriteBatch
from serve.store.items import metadata_of
from serve.store.types import (
    NO_ROW_IDS,
    Mask,
    Positions,
    RowIds,
    SearchPlan,
    SearchQuery,
    Selection,
    Strategy,
    Vectors,
)

# From the most to the least far-reaching; the plan of a search names the first that any segment used.
_ORDER: tuple[Strategy, ...] = ("approximate_then_exact", "approximate", "exact", "exact_subset", "empty")
# A scan of the whole segment in order is about this much cheaper per row than one that jumps between rows.
_ORDERLY = 4
# Positions of 8 bytes take no more memory than a mask where at most one row in 8 is selected.
_FEW = 8


class Approximate(Protocol):
    """An approximate index over a segment's rows.

    Attributes:
        rows_per_neighbour: So many rows are scanned in order in the time of exploring one more neighbour.
    """

    rows_per_neighbour: int

    def least(self, k: int, effort: int | None = None) -> int:
        """Neighbours that a search for `k` explores at least."""

    def search(self, queries: Vectors, k: int, effort: int | None = None) -> tuple[Vectors, Positions, int]:
        """As `flat.scan`, perhaps missing some, and the most rows that a query was compared with."""


class Records(Protocol):
    """What is known of the rows of one segment."""

    edited: set[int]
    """Row ids whose label or metadata may have changed since; grows only."""

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]] | None:
        """Of each row the id, or the id, label and metadata; None where only the database can say it."""


class MemtableRecords:
    """Records in memory, in the order of the rows; `rows` may go on behind the segment's own."""

    def __init__(self, rows: list[tuple[Any, str | None, str | None]]) -> None:
        self.edited: set[int] = set()
        self.rows = rows

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]]:
        """See `Records.take`."""
        found = [self.rows[row] for row in rows.tolist()]
        if ids_only:
            return [[record[0]] for record in found]
        return [[id_, label, metadata_of(metadata)] for id_, label, metadata in found]


class SegmentPlan(msgspec.Struct, frozen=True):
    """How one segment was searched; see `SearchPlan`."""

    strategy: Strategy
    candidates: int
    explored: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of an index.

    Attributes:
        name: Folder of the segment on disk, or None for rows in memory alone.
        row_ids: (n,) int64, ascending.
        vectors: (n, dim) float32, unit length.
        dead: (n,) True where the item was deleted or replaced, or None if nowhere.
        dead_count: Number of dead rows.
        approximate: An index over all rows, or None.
        device: A copy of the vectors on a GPU that scans them, or None.
        records: Ids, labels and metadata of the rows; None where only the database has them.
        records_lsn: LSN of the last write whose edits the records contain.
    """

    name: str | None
    row_ids: RowIds
    vectors: Vectors
    dead: Mask | None = None
    dead_count: int = 0
    approximate: Approximate | None = None
    device: DeviceScan | None = None
    records: Records | None = None
    records_lsn: int = 0

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def live_count(self) -> int:
        """Rows that are not dead."""
        return len(self.row_ids) - self.dead_count

    def without(self, row_ids: RowIds) -> Segment:
        """The segment with these row ids (ascending) dead, itself where it has none of them."""
        here = positions_of(row_ids, self.row_ids)
        if len(here) == 0:
            return self
        dead = np.zeros(len(self.row_ids), np.bool_) if self.dead is None else self.dead.copy()
        dead[here] = True
        return replace(self, dead=dead, dead_count=int(np.count_nonzero(dead)))

    def edit(self, row_ids: RowIds) -> None:
        """Notes that label or metadata of these rows (ascending), as far as they are here, have changed."""
        if self.records is not None:
            self.records.edited.update(self.row_ids[positions_of(row_ids, self.row_ids)].tolist())

    def live_rows(self) -> Positions:
        """Positions of rows that are not dead, ascending."""
        return np.arange(len(self.row_ids)) if self.dead is None else np.flatnonzero(~self.dead)

    def selection(self, row_ids: RowIds) -> Selection:
        """The rows, dead ones too, whose ids are among `row_ids` (ascending)."""
        rows = positions_of(row_ids, self.row_ids)
        if _FEW * len(rows) <= len(self.row_ids):
            return rows
        mask = np.zeros(len(self.row_ids), np.bool_)
        mask[rows] = True
        return mask

    def search(
        self, queries: Vectors, k: int, passing: Selection | None, how: SearchQuery
    ) -> tuple[Vectors, RowIds, SegmentPlan]:
        """As `find`, with the rows' ids (−1 where there are fewer hits) instead of their positions."""
        similarities, rows, plan = self.find(queries, k, passing, how)
        return similarities, np.where(rows < 0, -1, self.row_ids[rows]), plan

    def find(
        self, queries: Vectors, k: int, passing: Selection | None, how: SearchQuery
    ) -> tuple[Vectors, Positions, SegmentPlan]:
        """The `k` best rows of each query among the live ones that pass.

        Args:
            queries: (n, dim) float32, unit length.
            k: Number of neighbours.
            passing: Rows that pass a filter; None for all.
            how: Its `exact` and `effort` say how to search; the rest of it is the caller's business.

        Returns:
            Similarities (n, ≤k) descending, their rows (−1 where there are fewer), and the plan.
        """
        wanted, candidates = self._wanted(passing)
        k = min(k, candidates)
        if k == 0:
            nothing = np.empty((len(queries), 0))
            return nothing.astype(np.float32), nothing.astype(np.int64), SegmentPlan("empty", 0)
        rate = candidates / len(self.row_ids)
        # So many that k of them should pass; a filter against the query's surroundings leaves fewer.
        explored = k if wanted is None else min(len(self.row_ids), int(1.5 * k / rate) + 16)
        examined = 0
        index = None if how.exact else self.approximate
        scanned = min(len(self.row_ids), _ORDERLY * candidates)
        if index is not None and scanned > index.rows_per_neighbour * index.least(explored, how.effort):
            strategy: Strategy = "approximate"
            similarities, rows, examined = index.search(queries, explored, how.effort)
        elif rate * _ORDERLY >= 1:
            strategy = "exact"
            similarities, rows = self._scan(queries, explored)
        else:
            strategy = "exact_subset"
            similarities, rows = self._subset(queries, wanted, k)
            wanted = None
        if wanted is None:
            short = np.flatnonzero(rows[:, -1] < 0)
        else:
            similarities, rows, short = _keep(similarities, rows, wanted, k)
        if len(short):
            if strategy == "approximate":
                strategy = "approximate_then_exact"
            similarities[short], rows[short] = self._subset(queries[short], wanted, k)
        return similarities, rows, SegmentPlan(strategy, candidates, examined)

    def _wanted(self, passing: Selection | None) -> tuple[Selection | None, int]:
        """Rows that may be hits (None: all), and their number."""
        if passing is None:
            return (None if self.dead is None else ~self.dead), self.live_count
        if passing.dtype != np.bool_:
            rows = passing if self.dead is None else passing[~self.dead[passing]]
            return rows, len(rows)
        wanted = passing if self.dead is None else passing & ~self.dead
        return wanted, int(np.count_nonzero(wanted))

    def _scan(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        if self.device is not None:
            return self.device.scan(queries, min(k, len(self.row_ids)))
        return flat.scan(queries, self.vectors, k)

    def _subset(self, queries: Vectors, wanted: Selection | None, k: int) -> tuple[Vectors, Positions]:
        if wanted is None:
            return self._scan(queries, k)
        rows = np.flatnonzero(wanted) if wanted.dtype == np.bool_ else wanted.astype(np.int64, copy=False)
        return flat.scan_subset(queries, self.vectors, rows, k)


def positions_of(some: RowIds, among: RowIds) -> Positions:
    """Positions in `among` (ascending) of those of `some` (ascending) that are there."""
    if len(among) == 0 or len(some) == 0 or some[-1] < among[0] or some[0] > among[-1]:
        return np.empty(0, np.int64)
    low, high = np.searchsorted(some, [among[0], among[-1] + 1])
    some = some[low:high]
    if among[-1] - among[0] == len(among) - 1:  # without gaps, as an import leaves them
        rows: Positions = some - among[0]
        return rows
    at: Positions = np.searchsorted(among, some)
    found: Positions = at[among[at] == some]
    return found


def _keep(
    similarities: Vectors, rows: Positions, wanted: Selection, k: int
) -> tuple[Vectors, Positions, Positions]:
    """The first `k` wanted rows of each query, and the queries that have fewer."""
    fits = (rows >= 0) & wanted[rows] if wanted.dtype == np.bool_ else np.isin(rows, wanted)
    short = np.flatnonzero(fits.sum(axis=1) < k)
    # A stable sort on "does not fit" moves the fitting ones to the front in their order.
    order = np.argsort(~fits, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1), short


@dataclass(frozen=True, slots=True)
class Version:
    """Segments in the order of their row ids; the last one is the memtable, which grows.

    Attributes:
        segments: On disk and in memory. No row id is live in two of them.
        lsn: Log sequence number (LSN) of the last write that the version contains.
    """

    segments: tuple[Segment, ...]
    lsn: int

    @classmethod
    def of(cls, segments: Sequence[Segment], dim: int, lsn: int) -> Version:
        """A version of these segments and an empty memtable."""
        return cls((*segments, _empty_memtable(dim)), lsn)

    @property
    def memtable(self) -> Segment:
        """The segment that grows."""
        return self.segments[-1]

    @property
    def live_count(self) -> int:
        """Number of items."""
        return sum(segment.live_count for segment in self.segments)

    def after(self, batch: WriteBatch, memtable_rows: int) -> Version:
        """The version that follows a committed transaction."""
        segments = list(self.segments)
        for added in batch.added:
            if len(segments[-1]) >= memtable_rows:
                segments.append(_empty_memtable(added.vectors.shape[1]))
            segments[-1] = _extended(segments[-1], added)
        for segment in segments if batch.edited else ():
            segment.edit(np.unique(batch.edited))
        if batch.removed:
            removed = np.sort(np.concatenate(batch.removed))
            segments = [segment.without(removed) for segment in segments]
        return Version(tuple(segments), batch.lsn)

    def sealed(self) -> Version:
        """The version with an empty memtable, what was in it now a segment that no longer grows."""
        if len(self.memtable) == 0:
            return self
        return replace(self, segments=(*self.segments, _empty_memtable(self.memtable.vectors.shape[1])))

    def holds(self, segments: Sequence[Segment]) -> bool:
        """Whether these segments of an earlier version are still here, not derived anew meanwhile."""
        here = {id(segment.row_ids) for segment in self.segments[:-1]}
        return all(id(segment.row_ids) in here for segment in segments)

    def replaced(self, old: Sequence[Segment], new: Segment | None) -> Version:
        """The version with some segments merged into one; what died in them meanwhile is dead in it too.

        Args:
            old: Segments of an earlier version that `new` contains the live rows of.
            new: Their successor, None if no row was alive.
        """
        numbers = {id(segment.row_ids) for segment in old}
        rest = [segment for segment in self.segments[:-1] if id(segment.row_ids) not in numbers]
        if new is not None:
            now = [segment for segment in self.segments[:-1] if id(segment.row_ids) in numbers]
            died = [segment.row_ids[segment.dead] for segment in now if segment.dead is not None]
            rest.append(new.without(np.sort(np.concatenate(died or [NO_ROW_IDS]))))
        return replace(self, segments=(*rest, self.memtable))

    def search(
        self, queries: Vectors, k: int, passing: Sequence[Selection | None], how: SearchQuery, index: str
    ) -> tuple[Vectors, RowIds, SearchPlan]:
        """Searches every segment; see `Segment.search`. `passing` has the rows that pass of each."""
        found: list[tuple[Vectors, RowIds]] = []
        plans: list[SegmentPlan] = []
        for segment, rows in zip(self.segments, passing, strict=True):
            similarities, row_ids, plan = segment.search(queries, k, rows, how)
            found.append((similarities, row_ids))
            plans.append(plan)
        similarities, row_ids = flat.merge(found, min(k, sum(plan.candidates for plan in plans)))
        return similarities, row_ids, self.plan(plans, index)

    def plan(self, plans: Sequence[SegmentPlan], index: str) -> SearchPlan:
        """The plan of a search from those of all segments."""
        if len(plans) == 1:
            (only,) = plans
            selectivity = only.candidates / max(1, self.live_count)
            return SearchPlan(only.strategy, only.candidates, selectivity, index, only.explored)
        candidates = sum(plan.candidates for plan in plans)
        return SearchPlan(
            strategy=min((plan.strategy for plan in plans), key=_ORDER.index, default="empty"),
            candidates=candidates,
            selectivity=candidates / max(1, self.live_count),
            index=index,
            explored=sum(plan.explored for plan in plans),
        )

    def records(self, row_ids: RowIds, *, ids_only: bool) -> tuple[dict[int, list[Any]], list[int]]:
        """What the segments know of items with these row ids; negative numbers mark missing ones.

        Returns:
            By row id, lists of the id, or of id, label and metadata; and the row ids to ask the database for.
        """
        wanted = row_ids.ravel() if len(row_ids) == 1 else np.unique(row_ids)
        found: dict[int, list[Any]] = {}
        others: list[int] = []
        for segment in self.segments:
            if len(segment) == 0:
                continue
            at = segment.row_ids.searchsorted(wanted)
            at[at == len(segment)] = 0
            here = segment.row_ids[at] == wanted
            numbers = wanted[here].tolist()
            rows = None if segment.records is None else segment.records.take(at[here], ids_only=ids_only)
            if segment.records is None or rows is None:
                others += numbers
            elif numbers:
                found.update(zip(numbers, rows, strict=True))
                if not segment.records.edited.isdisjoint(numbers) and not ids_only:
                    others += segment.records.edited.intersection(numbers)
        return found, others


def _empty_memtable(dim: int) -> Segment:
    return Segment(None, NO_ROW_IDS, np.empty((0, dim), np.float32), records=MemtableRecords([]))


def _extended(memtable: Segment, added: AddedRows) -> Segment:
    """The memtable with rows appended, in the room behind it when there is some.

    The arrays of a memtable are views of the front of larger buffers. Rows behind the view are seen by no
    version but the newest, so they may be written without touching what readers hold.
    """
    row_ids, vectors = added.row_ids, added.vectors
    old, new = len(memtable), len(memtable) + len(row_ids)
    id_room, vector_room = memtable.row_ids.base, memtable.vectors.base
    if id_room is None or vector_room is None or len(id_room) < new or len(vector_room) < new:
        capacity = max(1024, 2 * new)
        id_room = np.empty(capacity, np.int64)
        vector_room = np.empty((capacity, vectors.shape[1]), np.float32)
        id_room[:old] = memtable.row_ids
        vector_room[:old] = memtable.vectors
    id_room[old:new] = row_ids
    vector_room[old:new] = vectors
    dead = (
        None if memtable.dead is None else np.concatenate([memtable.dead, np.zeros(len(row_ids), np.bool_)])
    )
    if isinstance(memtable.records, MemtableRecords):
        memtable.records.rows[old:] = added.records
    return replace(memtable, row_ids=id_room[:new], vectors=vector_room[:new], dead=dead)
