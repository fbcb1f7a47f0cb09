"""Background work on one collection's index: writes memtables as segments and merges small segments.

Searches and writes go on meanwhile; only the swap of the version holds commits back, for microseconds.
"""

from __future__ import annotations

import logging
import sqlite3
import threading

from models.errors import InputError
from serve.store.ann.approximate import EXACT
from serve.store.database import Database, Tuning
from serve.store.manifest import SegmentFolder
from serve.store.rows import edited_after
from serve.store.segment import Segment
from serve.store.version import CurrentVersion, Version

_log = logging.getLogger(__name__)

# A segment with a larger fraction of dead rows is rewritten.
MAX_DELETED_RATIO = 0.25
# Seconds until background work that failed (a full disk) is tried again: at first, and at most.
_RETRY, _LONGEST_RETRY = 1.0, 300.0


class Compactor:
    """Writes and merges the segments of one collection in a background thread.

    Attributes:
        trouble: Why the background work failed last time; None if it did not.
    """

    def __init__(
        self,
        database: Database,
        segments: SegmentFolder,
        current: CurrentVersion,
        index: str,
        tuning: Tuning,
    ) -> None:
        self._database = database
        self._segments = segments
        self._current = current
        self._index = index
        self._tuning = tuning
        self.trouble: str | None = None
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="store-compactor", daemon=True)
        current.changed.set()
        self._thread.start()

    def stop(self) -> None:
        """Ends the background work and abandons what is unfinished."""
        self._stop.set()
        self._current.changed.set()
        self._thread.join()

    def flush(self) -> None:
        """Writes everything in memory to segments on disk, now."""
        with self._busy:
            self._seal()
            while self._compact_once():
                pass
            self._write_manifest()

    def compact(self) -> None:
        """Merges everything in memory and all segments into one segment, now."""
        with self._busy:
            self._seal()
            while self._compact_once() or self._compact_once(everything=True):
                pass

    def purge(self) -> None:
        """Rewrites every segment with dead or edited rows, now."""
        with self._busy:
            while self._compact_once(max_deleted=0.0):
                pass
            self._write_manifest()

    def _loop(self) -> None:
        wait: float | None = None
        seen = -1
        pause = _RETRY
        while True:
            self._current.changed.wait(wait)
            self._current.changed.clear()
            if self._stop.is_set():
                return
            try:
                with self._current.commits.paused():
                    self._current.catch_up()
                with self._busy:
                    while not self._stop.is_set():
                        if not self._compact_once(everything=self._current.version.lsn == seen):
                            break
                seen = self._current.version.lsn
                wait = self._tuning.settle_seconds if self._scattered() else None
                self.trouble, pause = None, _RETRY
            except Exception as error:  # noqa: BLE001  (without this thread no segment would be built again)
                expected = isinstance(error, InputError | OSError | MemoryError | sqlite3.OperationalError)
                _log.warning(
                    "background work on the index failed, trying again in %.0f s: %s",
                    pause,
                    error,
                    exc_info=None if expected else error,
                )
                self.trouble = str(error) or type(error).__name__
                self._stop.wait(pause)
                wait, pause = 0.0, min(2 * pause, _LONGEST_RETRY)

    def _seal(self) -> None:
        with self._current.commits.paused():
            self._current.version = self._current.version.sealed()

    def _scattered(self) -> bool:
        """Whether a search asks several indexes where one, at least twice as fast, would do."""
        segments = [segment for segment in self._current.version.segments[:-1] if segment.name is not None]
        return self._index != EXACT and len(segments) > 1

    def _compact_once(self, max_deleted: float = MAX_DELETED_RATIO, *, everything: bool = False) -> bool:
        """Merges the segments that are due, or all of them, into one; False if there was nothing to do."""
        version = self._current.version
        everything = everything and self._scattered()
        old = list(version.segments[:-1]) if everything else self._due(version, max_deleted)
        if not old:
            return False
        rows = sum(segment.live_count for segment in old)
        index = self._index if rows >= self._tuning.approximate_rows else EXACT
        base = self._base(old, index, max_deleted)
        threads = self._tuning.build_threads
        entry = self._segments.write(old, index, base=base, threads=threads, stop=self._stop.is_set)
        if self._stop.is_set():
            return False
        new = None if entry is None else self._segments.map(entry)
        with self._current.commits.paused():
            if not self._current.version.holds(old):
                return True
            if entry is not None and new is not None:
                with self._database.read() as connection:
                    new.edit(edited_after(connection, entry.sequence))
            self._current.version = self._current.version.replaced(old, new)
        self._write_manifest()
        return True

    def _due(self, version: Version, max_deleted: float) -> list[Segment]:
        """Segments to merge now: those in memory or with many stale rows, and others no larger than these."""
        settled = version.segments[:-1]
        due = [
            segment
            for segment in settled
            if segment.name is None
            or _decay(segment) > max_deleted * len(segment)
            or self._wants_new_files(segment)
        ]
        rows = sum(segment.live_count for segment in due)
        rest = sorted((segment for segment in settled if segment not in due), key=len)
        for segment in rest:
            if len(segment) > rows:
                break
            due.append(segment)
            rows += segment.live_count
        return due

    def _base(self, old: list[Segment], index: str, max_deleted: float) -> Segment | None:
        """The segment whose graph can take the rows of the others, if there is one."""
        base = max(old, key=len)
        grows = (
            base.entry is not None
            and base.entry.index == index
            and base.approximate is not None
            and not base.approximate.compressed
            and base.dead_count <= max_deleted * len(base)
            and all(segment.row_ids[0] > base.row_ids[-1] for segment in old if segment is not base)
        )
        return base if grows else None

    def _wants_new_files(self, segment: Segment) -> bool:
        """Whether a segment should have an approximate index and has none or another, or lacks records."""
        wanted = self._index if segment.live_count >= self._tuning.approximate_rows else EXACT
        return segment.entry is not None and (segment.entry.index != wanted or segment.records is None)

    def _write_manifest(self) -> None:
        version = self._current.version
        entries = [segment.entry for segment in version.segments if segment.entry is not None]
        unflushed = [
            segment.row_ids[0] for segment in version.segments if segment.name is None and len(segment)
        ]
        flushed = int(min(unflushed)) - 1 if unflushed else version.lsn
        self._segments.commit(entries, flushed)


def _decay(segment: Segment) -> int:
    """Number of stale rows: dead ones, or those whose records have to be read from the database."""
    return max(segment.dead_count, 0 if segment.records is None else len(segment.records.edited))
