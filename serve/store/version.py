"""Versions, the states that searches see: derived from the database at start, and kept in step with it.

A `Version` is an immutable set of segments. Each commit builds the next one and swaps it in; a search takes
the current one once and works on it without a lock.

`FilterCache` keeps which rows pass a filter. SQL answers a filter with the ids of the rows that pass; the
cache brings them up to date by asking for later row ids only: a row never changes its vector, the segment
leaves dead rows out, and an edit of labels or metadata empties the cache.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serve.store.ann import flat
from serve.store.database import AddedRows, Database, GroupCommit, WriteBatch, last_lsn
from serve.store.filters import EVERYTHING, Condition
from serve.store.rows import edited_after, read_rows, row_ids_where
from serve.store.segment import MemtableRecords, Segment, SegmentPlan
from serve.store.types import (
    NO_ROW_IDS,
    RowIds,
    SearchPlan,
    SearchQuery,
    Selection,
    StoreError,
    Strategy,
    Vectors,
)

_log = logging.getLogger(__name__)

# Rows that are read from the database at a time.
_PAGE = 16_384
# Most memory of a collection's filter cache.
_MOST_BYTES = 64 * 2**20
# From the most to the least far-reaching; the plan of a search names the first that any segment used.
_ORDER: tuple[Strategy, ...] = ("approximate_then_exact", "approximate", "exact", "exact_subset", "empty")


@dataclass(frozen=True, slots=True)
class Version:
    """An immutable set of segments in the order of their row ids; the last one is the memtable.

    Attributes:
        segments: On disk and in memory. No row id is live in two of them.
        lsn: Log sequence number (LSN) of the last write that the version contains.
    """

    segments: tuple[Segment, ...]
    lsn: int

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
        """The version with an empty memtable; the old memtable is now a segment that no longer grows."""
        memtable = self.segments[-1]
        if len(memtable) == 0:
            return self
        return replace(self, segments=(*self.segments, _empty_memtable(memtable.vectors.shape[1])))

    def holds(self, segments: Sequence[Segment]) -> bool:
        """Whether this version still has these segments of an earlier one, rather than recovered copies."""
        here = {id(segment.row_ids) for segment in self.segments[:-1]}
        return all(id(segment.row_ids) in here for segment in segments)

    def replaced(self, old: Sequence[Segment], new: Segment | None) -> Version:
        """The version with the live rows of `old` segments merged into `new` (None if there were none).

        Rows that died in them since are dead in it too.
        """
        numbers = {id(segment.row_ids) for segment in old}
        rest = [segment for segment in self.segments[:-1] if id(segment.row_ids) not in numbers]
        if new is not None:
            now = [segment for segment in self.segments[:-1] if id(segment.row_ids) in numbers]
            died = [segment.row_ids[segment.dead] for segment in now if segment.dead is not None]
            rest.append(new.without(np.sort(np.concatenate(died or [NO_ROW_IDS]))))
        return replace(self, segments=(*rest, self.segments[-1]))

    def search(
        self, queries: Vectors, k: int, passing: Sequence[Selection | None], how: SearchQuery, index: str
    ) -> tuple[Vectors, RowIds, SearchPlan]:
        """As `Segment.find` over all segments, with row ids for positions. The plan names the `index`."""
        found: list[tuple[Vectors, RowIds]] = []
        plans: list[SegmentPlan] = []
        for segment, selection in zip(self.segments, passing, strict=True):
            similarities, rows, plan = segment.find(queries, k, selection, how)
            found.append((similarities, np.where(rows < 0, -1, segment.row_ids[rows])))
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
        """Records of these row ids, of which negative ones mark missing hits.

        Returns:
            By row id, a list of the id, or of id, label and metadata; and the row ids that have to be read
            from the database.
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
    """The memtable with rows appended, in place where its buffers have room.

    The arrays of a memtable are views of the front of larger buffers. No reader sees rows behind its view, so
    they may be written while searches run.
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


@dataclass(frozen=True, slots=True)
class _PassingRows:
    """Ids of the rows that passed at an LSN, and where they are in segments on disk."""

    row_ids: RowIds
    lsn: int
    selections: dict[str, Selection]

    @property
    def bytes(self) -> int:
        return self.row_ids.nbytes + sum(rows.nbytes for rows in self.selections.values())


class FilterCache:
    """The rows of one collection that pass the filters of earlier searches.

    Nothing is kept unless this process is `alone` in writing to it.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._entries: OrderedDict[Condition, _PassingRows] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._edited = 0

    def forget(self, lsn: int) -> None:
        """Empties the cache because labels or metadata were edited, last at this LSN.

        Searches may still be at an earlier version; what they find is not kept.
        """
        with self._lock:
            self._edited = lsn
            self._entries.clear()
            self._bytes = 0

    def passing(
        self, condition: Condition, version: Version, connect: Callable[[], sqlite3.Connection]
    ) -> list[Selection | None]:
        """The rows of each segment that pass, dead ones too; None means all.

        `connect` opens the database at that version, only where the cache has nothing of it.
        """
        if condition == EVERYTHING:
            return [None] * len(version.segments)
        with self._lock:
            entry = known = self._entries.get(condition)
            if known is not None:
                self._entries.move_to_end(condition)
        if entry is None or entry.lsn > version.lsn:
            entry = _PassingRows(NO_ROW_IDS, -1, {})
        if entry.lsn != version.lsn:
            connection = connect()
            fresh = row_ids_where(connection, condition, above=entry.lsn if entry.lsn >= 0 else None)
            row_ids = np.concatenate([entry.row_ids, fresh])
            entry = replace(entry, row_ids=row_ids, lsn=last_lsn(connection))
        named: dict[str, Selection] = {}
        passing: list[Selection | None] = []
        for segment in version.segments:
            rows = entry.selections.get(segment.name or "")
            if rows is None:
                rows = segment.selection(entry.row_ids)
            if segment.name is not None:
                named[segment.name] = rows
            passing.append(rows)
        if entry is not known or named.keys() != entry.selections.keys():
            self._remember(condition, replace(entry, selections=named))
        return passing

    def _remember(self, condition: Condition, entry: _PassingRows) -> None:
        with self._lock:
            if entry.lsn < self._edited or not self._alone:
                return
            if condition in self._entries:
                self._bytes -= self._entries.pop(condition).bytes
            self._entries[condition] = entry
            self._bytes += entry.bytes
            while self._bytes > _MOST_BYTES:
                self._bytes -= self._entries.popitem(last=False)[1].bytes


class CurrentVersion:
    """The version of a collection that searches see, kept in step with its database.

    Attributes:
        version: The current version; replaced only while no commit runs.
        commits: Writes to the database and publishes each change as a new version.
        filters: The rows that pass the filters of earlier searches.
        changed: Set when segments may have to be written or merged.
    """

    def __init__(self, database: Database, dim: int, segments: Sequence[Segment], memtable_rows: int) -> None:
        self._database = database
        self._dim = dim
        self._memtable_rows = memtable_rows
        self.version = recovered(database, dim, segments, memtable_rows)
        self.commits = GroupCommit(database, self._publish)
        self.filters = FilterCache(alone=not database.read_only)
        self.changed = threading.Event()

    def catch_up(self) -> None:
        """Recovers the version if a publication was cut short, by lack of memory or an interrupt.

        Call it only while no commit runs (`GroupCommit.paused`).
        """
        if self._database.read_only:
            return
        with self._database.read() as connection:
            now = last_lsn(connection)
        if now != self.version.lsn:
            self.filters.forget(now)
            segments = [segment for segment in self.version.segments if segment.name is not None]
            self.version = recovered(self._database, self._dim, segments, self._memtable_rows)

    def _publish(self, batch: WriteBatch) -> None:
        """Makes a committed transaction visible to searches."""
        before = self.version
        try:
            if batch.edited:
                self.filters.forget(batch.lsn)
            if batch.began == before.lsn:
                self.version = before.after(batch, self._memtable_rows)
            else:  # an earlier publication was cut short
                self.catch_up()
        except Exception:  # noqa: BLE001  (the write is durable, so searches have to see it)
            _log.exception("a write could not be added to the index, which is now derived anew")
            self.catch_up()
        finally:
            grown = len(self.version.segments) > len(before.segments)
            if batch.removed or grown or self.version.lsn != batch.lsn:
                self.changed.set()


def recovered(database: Database, dim: int, segments: Sequence[Segment], memtable_rows: int) -> Version:
    """The version that holds exactly the items of the database.

    A row of a segment is alive if and only if the database has its id and no earlier segment does; a row that
    no segment has is read from the database. So no list of deletions has to be kept. A segment that is
    missing, outdated or left over beside its successor costs time but loses no item.

    Raises:
        StoreError: The database holds a vector of another length.
    """
    with database.read_transaction() as connection:
        now = last_lsn(connection)
        live = row_ids_where(connection, EVERYTHING)
        for segment in segments:
            if segment.entry is not None:
                segment.edit(edited_after(connection, segment.entry.sequence))
    uncovered = np.ones(len(live), np.bool_)
    useful: list[Segment] = []
    for segment in segments:
        alive = np.isin(segment.row_ids, live[uncovered], assume_unique=True)
        uncovered[np.searchsorted(live, segment.row_ids[alive])] = False
        if alive.any():
            useful.append(segment.without(segment.row_ids[~alive]))
    version = Version((*useful, _empty_memtable(dim)), now)
    return _with_missing(version, database, dim, live[uncovered], memtable_rows)


def _with_missing(
    version: Version, database: Database, dim: int, missing: RowIds, memtable_rows: int
) -> Version:
    done = 0
    above = int(missing[0]) - 1 if len(missing) else 0
    while done < len(missing):
        with database.read() as connection:
            row_ids, rows, records = read_rows(connection, above, _PAGE)
        if len(row_ids) == 0:
            break  # deleted by the process that writes; this one only reads
        if rows.shape[1] != 4 * dim:
            raise StoreError(f"{database.path} holds vectors of {rows.shape[1] // 4} numbers, not {dim}")
        wanted = np.isin(row_ids, missing[done:], assume_unique=True)
        vectors = np.ascontiguousarray(rows[wanted]).view("<f4").astype(np.float32, copy=False)
        chosen = [records[row] for row in np.flatnonzero(wanted)]
        added = [AddedRows(row_ids[wanted], vectors, chosen)]
        version = version.after(WriteBatch(version.lsn, version.lsn, added=added), memtable_rows)
        above = int(row_ids[-1])
        done = int(np.searchsorted(missing, above, side="right"))
    return version
