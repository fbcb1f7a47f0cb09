"""Which rows of the index pass a filter, remembered between searches.

SQL answers a filter with the ids of the rows that pass. They are kept per filter, and brought up to date by
asking for later row ids only: a row never changes its vector, a dead one is masked by the index itself, and
an edit of labels or metadata forgets everything.
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
from serve.store.types import NO_ROW_IDS, Mask, RowIds

_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _PassingRows:
    """Ids of the rows that passed at an LSN, and their masks over segments on disk."""

    row_ids: RowIds
    lsn: int
    masks: dict[str, Mask]

    @property
    def bytes(self) -> int:
        return self.row_ids.nbytes + sum(mask.nbytes for mask in self.masks.values())


class FilterCache:
    """Filter masks of one collection.

    Args:
        alone: Whether no other process writes to it; nothing is worth remembering where one does.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._entries: OrderedDict[Condition, _PassingRows] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._edited = 0

    def forget(self, lsn: int) -> None:
        """Labels or metadata were edited, last at that LSN: what passed may pass no longer.

        Searches may still be at an earlier version; what they find out then is not remembered.
        """
        with self._lock:
            self._edited = lsn
            self._entries.clear()
            self._bytes = 0

    def masks(
        self, condition: Condition, version: Version, connect: Callable[[], sqlite3.Connection]
    ) -> list[Mask | None]:
        """For each segment of the version, which rows pass; None means all.

        Args:
            condition: The filter.
            version: What is searched.
            connect: Gives a connection to the database at that version; called only where what is
                remembered is older.
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
        named = {
            name: entry.masks[name] if name in entry.masks else segment.mask(entry.row_ids)
            for segment in version.segments
            if (name := segment.name) is not None
        }
        if entry is not known or named.keys() != entry.masks.keys():
            self._remember(condition, replace(entry, masks=named))
        return [
            segment.mask(entry.row_ids) if segment.name is None else named[segment.name]
            for segment in version.segments
        ]

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
