"""The version that searches see: derived from the database at start, and kept in step with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np

from serve.store.database import AddedRows, Database, GroupCommit, WriteBatch, last_lsn
from serve.store.filter_cache import FilterCache
from serve.store.filters import EVERYTHING
from serve.store.rows import edited_after, read_rows, row_ids_where
from serve.store.segment import Segment, Version
from serve.store.types import RowIds, StoreError

_log = logging.getLogger(__name__)

# Rows that are read from the database at a time.
_PAGE = 16_384


class CurrentVersion:
    """The version of a collection that searches see, kept in step with its database.

    Args:
        database: The truth.
        dim: Length of a vector.
        segments: What was found on disk.
        memtable_rows: Rows that a memtable takes.

    Attributes:
        version: The current version; replaced with commits excluded.
        commits: Writes to the database, and publishes what changed in a new version.
        filters: Which rows pass the filters of earlier searches.
        changed: Set where segments may have to be written or merged.
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
        """Derives the version anew where a publication was cut short, by lack of memory or an interrupt.

        Called with commits excluded.
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
        """Lets searches see a committed transaction."""
        before = self.version
        try:
            if batch.edited:
                self.filters.forget(batch.lsn)
            if batch.began == before.lsn:
                self.version = before.after(batch, self._memtable_rows)
            else:  # an earlier publication was cut short
                self.catch_up()
        except Exception:  # noqa: BLE001  (whatever it is, the write is durable and has to be seen)
            _log.exception("a write could not be added to the index, which is now derived anew")
            self.catch_up()
        finally:
            grown = len(self.version.segments) > len(before.segments)
            if batch.removed or grown or self.version.lsn != batch.lsn:
                self.changed.set()


def recovered(database: Database, dim: int, segments: Sequence[Segment], memtable_rows: int) -> Version:
    """The version that holds exactly the items of the database.

    A row of a segment is alive if and only if the database has its id and no segment before it does; a row
    that no segment has is read from the database. So no list of deletions has to be kept, and a segment
    that is missing, old, left over beside its successor or from before a restored backup costs time, never
    an item.

    Raises:
        StoreError: The database holds a vector of another length.
    """
    with database.read_transaction() as connection:
        now = last_lsn(connection)
        live = row_ids_where(connection, EVERYTHING)
        for segment in segments:
            if segment.records is not None:
                segment.edit(edited_after(connection, segment.records_lsn))
    uncovered = np.ones(len(live), np.bool_)
    useful: list[Segment] = []
    for segment in segments:
        alive = np.isin(segment.row_ids, live[uncovered], assume_unique=True)
        uncovered[np.searchsorted(live, segment.row_ids[alive])] = False
        if alive.any():
            useful.append(segment.without(segment.row_ids[~alive]))
    version = Version.of(useful, dim, now)
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
            break  # deleted by the process that writes while we only read
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
