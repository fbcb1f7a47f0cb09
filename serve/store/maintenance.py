"""Background work on one collection's index: memory becomes segments, small segments become large ones.

The work happens beside searches and writes; only the swap of the state excludes a commit, for microseconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from models.errors import InputError
from serve.store.approximate import EXACT
from serve.store.commits import Commits
from serve.store.index import IndexState
from serve.store.parts import Part
from serve.store.segments import Entry, SegmentFolder

_log = logging.getLogger(__name__)

# A segment with more dead rows than this part is written anew.
_ROTTEN = 0.25
# Seconds until background work that failed (a full disk) is tried again.
_RETRY = 30.0


class Maintenance:
    """Keeps the segments of one collection in order, in a thread of its own once `start`ed.

    Args:
        segments: Where they lie.
        entries: Those that `state` maps now, by name.
        commits: Excludes writes while the state is swapped.
        state: The current state.
        swap: Replaces it; called with writes excluded.
        index: Factory string of the approximate index.
        approximate_rows: A segment gets such an index from this many rows on.
        threads: OpenMP threads for building.
    """

    def __init__(
        self,
        segments: SegmentFolder,
        entries: dict[str, Entry],
        commits: Commits,
        state: Callable[[], IndexState],
        swap: Callable[[IndexState], None],
        *,
        index: str,
        approximate_rows: int,
        threads: int,
    ) -> None:
        self._segments = segments
        self._entries = entries
        self._commits = commits
        self._state = state
        self._swap = swap
        self._index = index
        self._approximate_rows = approximate_rows
        self._threads = threads
        self._busy = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="store-maintenance", daemon=True)

    def start(self) -> None:
        """Begins to work in the background."""
        self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    def stop(self) -> None:
        """Ends the background work, abandoning what is half done."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def snapshot(self) -> None:
        """Writes everything in memory to segments, now."""
        with self._busy:
            with self._commits.paused():
                self._swap(self._state().sealed())
            while self._round():
                pass
            self._write_manifest()

    def purge(self) -> None:
        """Writes every segment anew that holds dead rows, now."""
        with self._busy:
            while self._round(rotten=0.0):
                pass

    def _loop(self) -> None:
        wait: float | None = None
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._stop.is_set():
                return
            wait = None
            try:
                with self._busy:
                    while not self._stop.is_set() and self._round():
                        pass
            except (InputError, OSError, RuntimeError, MemoryError) as error:
                _log.warning("background work on the index failed, trying again later: %s", error)
                wait = _RETRY

    def _round(self, rotten: float = _ROTTEN) -> bool:
        """Merges what is due into one segment; False where nothing was."""
        old = self._due(self._state(), rotten)
        if not old:
            return False
        rows = sum(part.live_count for part in old)
        index = self._index if rows >= self._approximate_rows else EXACT
        entry = self._segments.write(old, index, threads=self._threads, stop=self._stop.is_set)
        if self._stop.is_set():
            return False
        new = None if entry is None else self._segments.map(entry)
        gone = {part.name for part in old}
        kept = {name: kept for name, kept in self._entries.items() if name not in gone}
        self._entries = kept if entry is None else kept | {entry.name: entry}
        with self._commits.paused():
            self._swap(self._state().replaced(old, new))
        self._write_manifest()
        return True

    def _due(self, state: IndexState, rotten: float) -> list[Part]:
        """Parts to merge now: those in memory, rotten ones, and segments no larger than these together."""
        settled = state.parts[:-1]
        due = [
            part
            for part in settled
            if part.name is None or part.dead_count > rotten * len(part) or self._wants_index(part)
        ]
        rows = sum(part.live_count for part in due)
        rest = sorted((part for part in settled if part not in due), key=len)
        for part in rest:
            if len(part) > rows:
                break
            due.append(part)
            rows += part.live_count
        return due

    def _wants_index(self, part: Part) -> bool:
        """Whether a segment should have an approximate index and has none, or another."""
        name = part.name or ""
        wanted = self._index if part.live_count >= self._approximate_rows else EXACT
        return name in self._entries and self._entries[name].index != wanted

    def _write_manifest(self) -> None:
        state = self._state()
        loose = [part.keys[0] for part in state.parts if part.name is None and len(part)]
        covered = int(min(loose)) - 1 if loose else state.sequence
        self._segments.commit(list(self._entries.values()), covered)
