"""A cache of the rows that pass a filter.

SQL answers a filter with the ids of the rows that pass. The cache keeps them by filter and brings them up to
date by asking for later row ids only: a row never changes its vector, the segment leaves dead rows out, and
an edit of labels or metadata empties the cache.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from serve.store.database import last_lsn
from serve.store.filters import EVERYTHING, Condition
from serve.store.rows import row_ids_where
from serve.store.segment import Version
from serve.store.types import NO_ROW_IDS, RowIds, Selection

_MOST_BYTES = 64 * 2**20


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

    Args:
        alone: Whether no other process writes to it; nothing is kept where one does.
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

        Args:
            condition: The filter.
            version: What is searched.
            connect: Opens the database at that version; called only where the cache has nothing of this
                version.
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
            entry = _extended(entry, condition, connect())
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


def _extended(entry: _PassingRows, condition: Condition, connection: sqlite3.Connection) -> _PassingRows:
    fresh = row_ids_where(connection, condition, above=entry.lsn if entry.lsn >= 0 else None)
    return replace(entry, row_ids=np.concatenate([entry.row_ids, fresh]), lsn=last_lsn(connection))
