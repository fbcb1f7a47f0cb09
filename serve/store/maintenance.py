"""Background work on one collection's index: memory becomes segments, small segments become large ones.

The work happens beside searches and writes; only the swap of the state excludes a commit, for microseconds.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

from models.errors import InputError
from serve.store.approximate import EXACT, can_grow
from serve.store.commits import Commits
from serve.store.database import Database
from serve.store.definition import Tuning
from serve.store.index import IndexState
from serve.store.parts import Part
from serve.store.rows import edited_after
from serve.store.segments import Entry, SegmentFolder

_log = logging.getLogger(__name__)

# A segment with more dead rows than this part is written anew.
_ROTTEN = 0.25
# Seconds until background work that failed (a full disk) is tried again: at first, and at most.
_RETRY, _LONGEST_RETRY = 1.0, 300.0


class Maintenance:
    """Keeps the segments of one collection in order, in a thread of its own once `start`ed.

    Args:
        database: The truth, which knows what was edited while a segment was written.
        segments: Where they lie.
        entries: Those that `state` maps now, by name.
        commits: Excludes writes while the state is swapped.
        state: The current state.
        swap: Replaces it; called with writes excluded.
        catch_up: Derives it anew where it has fallen behind the database; called with writes excluded.
        index: Factory string of the approximate index.
        tuning: Sizes, threads, and how long a collection has to be left alone for the full merge.
    """

    def __init__(
        self,
        database: Database,
        segments: SegmentFolder,
        entries: dict[str, Entry],
        commits: Commits,
        state: Callable[[], IndexState],
        swap: Callable[[IndexState], None],
        catch_up: Callable[[], None],
        *,
        index: str,
        tuning: Tuning,
    ) -> None:
        self._database = database
        self._segments = segments
        self._entries = entries
        self._commits = commits
        self._state = state
        self._swap = swap
        self._catch_up = catch_up
        self._index = index
        self._tuning = tuning
        self.trouble: str | None = None
        """Why the work in the background failed the last time; None if it did not."""
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

    def compact(self) -> None:
        """Writes everything in memory and all segments to one segment, now."""
        with self._busy:
            with self._commits.paused():
                self._swap(self._state().sealed())
            while self._round() or self._round(everything=True):
                pass

    def purge(self) -> None:
        """Writes every segment anew that holds dead rows or edited ones, now."""
        with self._busy:
            while self._round(rotten=0.0):
                pass
            self._write_manifest()

    def _loop(self) -> None:
        wait: float | None = None
        seen = -1
        pause = _RETRY
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                with self._commits.paused():
                    self._catch_up()
                with self._busy:
                    while not self._stop.is_set() and self._round(everything=self._state().sequence == seen):
                        pass
                seen = self._state().sequence
                wait = self._tuning.settle_seconds if self._scattered() else None
                self.trouble, pause = None, _RETRY
            except Exception as error:  # noqa: BLE001  (without this thread no segment would ever be built again)
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

    def _scattered(self) -> bool:
        """Whether a search asks several indexes where it could ask one, twice as quick or more."""
        segments = [part for part in self._state().parts[:-1] if part.name is not None]
        return self._index != EXACT and len(segments) > 1

    def _round(self, rotten: float = _ROTTEN, *, everything: bool = False) -> bool:
        """Merges what is due into one segment, or all there is; False where nothing was."""
        state = self._state()
        old = list(state.parts[:-1]) if everything and self._scattered() else self._due(state, rotten)
        if not old:
            return False
        rows = sum(part.live_count for part in old)
        index = self._index if rows >= self._tuning.approximate_rows else EXACT
        base = self._base(old, index, rotten)
        threads = self._tuning.build_threads
        entry = self._segments.write(old, index, base=base, threads=threads, stop=self._stop.is_set)
        if self._stop.is_set():
            return False
        new = None if entry is None else self._segments.map(entry)
        with self._commits.paused():
            if not self._state().holds(old):
                return True
            if new is not None:
                with self._database.read() as connection:
                    new.edit(edited_after(connection, new.recorded))
            self._swap(self._state().replaced(old, new))
        if entry is not None:
            self._entries[entry.name] = entry
        self._write_manifest()
        return True

    def _due(self, state: IndexState, rotten: float) -> list[Part]:
        """Parts to merge now: those in memory, rotten ones, and segments no larger than these together."""
        settled = state.parts[:-1]
        due = [
            part
            for part in settled
            if part.name is None or _decay(part) > rotten * len(part) or self._wants_new_files(part)
        ]
        rows = sum(part.live_count for part in due)
        rest = sorted((part for part in settled if part not in due), key=len)
        for part in rest:
            if len(part) > rows:
                break
            due.append(part)
            rows += part.live_count
        return due

    def _base(self, old: list[Part], index: str, rotten: float) -> Part | None:
        """The one of these parts whose graph may grow by the rows of the others, if any."""
        base = max(old, key=len)
        entry = self._entries.get(base.name or "")
        grows = (
            entry is not None
            and entry.index == index
            and can_grow(base.approximate)
            and base.dead_count <= rotten * len(base)
            and all(part.keys[0] > base.keys[-1] for part in old if part is not base)
        )
        return base if grows else None

    def _wants_new_files(self, part: Part) -> bool:
        """Whether a segment should have an approximate index and has none or another, or lacks records."""
        name = part.name or ""
        if name not in self._entries:
            return False
        wanted = self._index if part.live_count >= self._tuning.approximate_rows else EXACT
        return self._entries[name].index != wanted or part.records is None

    def _write_manifest(self) -> None:
        state = self._state()
        named = {part.name for part in state.parts}
        self._entries = {name: entry for name, entry in self._entries.items() if name in named}
        loose = [part.keys[0] for part in state.parts if part.name is None and len(part)]
        covered = int(min(loose)) - 1 if loose else state.sequence
        self._segments.commit(list(self._entries.values()), covered)


def _decay(part: Part) -> int:
    """Rows of a segment that only cost: dead ones, or those whose records the database must be asked for."""
    return max(part.dead_count, 0 if part.records is None else len(part.records.edited))
