"""The searchable state of one open collection, and what changes it: commits, background work, recovery."""

from __future__ import annotations

import logging
from pathlib import Path

from serve.store.approximate import parse
from serve.store.candidates import Candidates
from serve.store.commits import Commits, T, Work
from serve.store.database import Database
from serve.store.definition import Definition, Tuning
from serve.store.index import IndexState
from serve.store.maintenance import Maintenance
from serve.store.protocol import ReadOnly, SearchQuery, SearchResult, Vectors
from serve.store.recovery import recovered
from serve.store.rows import Changes, sequence
from serve.store.searching import Searching
from serve.store.segments import SegmentFolder

_log = logging.getLogger(__name__)


class LiveIndex:
    """Loads the snapshot, brings it up to the truth, and keeps it there.

    Args:
        place: The collection's folder.
        database: Its truth.
        definition: What it is for.
        tuning: Sizes and threads.
    """

    def __init__(self, place: Path, database: Database, definition: Definition, tuning: Tuning) -> None:
        self._database = database
        self._definition = definition
        self._tuning = tuning
        factory, effort = parse(definition.index)
        self._segments = SegmentFolder(place, database, definition.dim, effort, tuning.device)
        with database.read() as connection:
            now = sequence(connection)
        parts, entries = self._segments.load(now, read_only=database.read_only)
        self._state = recovered(database, definition.dim, parts, tuning.head_rows)
        self._candidates = Candidates(alone=not database.read_only)
        self._commits = Commits(database, self._publish)
        self._maintenance: Maintenance | None = None
        if not database.read_only:
            self._maintenance = Maintenance(
                database,
                self._segments,
                entries,
                self._commits,
                lambda: self._state,
                self._swap,
                self._catch_up,
                index=factory,
                tuning=tuning,
            )
            self._maintenance.start()
        self._searching = Searching(
            database,
            lambda: self._state,
            self._candidates,
            None if database.read_only else self._commits,
            self._catch_up,
            definition.index,
            tuning.search_threads,
        )

    @property
    def state(self) -> IndexState:
        """The current state; immutable."""
        return self._state

    @property
    def trouble(self) -> str | None:
        """Why the background work failed the last time; None if it did not."""
        return None if self._maintenance is None else self._maintenance.trouble

    def snapshot_sequence(self) -> int:
        """Last write that the snapshot on disk contains."""
        return self._segments.sequence()

    def search(self, vectors: Vectors, query: SearchQuery) -> SearchResult:
        """Searches by vectors of unit length; see `Store.search`."""
        return self._searching.run(vectors, query)

    def commit(self, work: Work[T]) -> T:
        """Runs a work in a transaction; returns once it is durable and visible. See `Commits.run`."""
        return self._commits.run(work)

    def snapshot(self) -> None:
        """Writes everything in memory to segments."""
        self._writable().snapshot()

    def compact(self) -> None:
        """Writes everything to one segment."""
        self._writable().compact()

    def purge(self) -> None:
        """Writes segments and database anew, without anything that was deleted."""
        self._writable().purge()
        with self._commits.paused():
            self._database.vacuum()

    def close(self) -> None:
        """Ends the background work."""
        if self._maintenance is not None:
            self._maintenance.stop()

    def _writable(self) -> Maintenance:
        if self._maintenance is None:
            raise ReadOnly(f"{self._database.path.parent} is open for reading only")
        return self._maintenance

    def _publish(self, changes: Changes) -> None:
        """Lets searches see a committed transaction."""
        before = self._state
        try:
            if changes.edited:
                self._candidates.forget(changes.sequence)
            if changes.began == before.sequence:
                self._swap(before.after(changes, self._tuning.head_rows))
            else:  # an earlier publication was cut short
                self._catch_up()
        except Exception:  # noqa: BLE001  (whatever it is, the write is durable and has to be seen)
            _log.exception("a write could not be added to the index, which is now derived anew")
            self._catch_up()
        finally:
            if (
                changes.removed
                or self._state.sequence != changes.sequence
                or len(self._state.parts) > len(before.parts)
            ):
                self._writable().wake()

    def _catch_up(self) -> None:
        """Derives the state anew where a publication was cut short, by lack of memory or an interrupt.

        Called with writes excluded.
        """
        if self._database.read_only:
            return
        with self._database.read() as connection:
            now = sequence(connection)
        if now != self._state.sequence:
            self._candidates.forget(now)
            segments = [part for part in self._state.parts if part.name is not None]
            self._swap(recovered(self._database, self._definition.dim, segments, self._tuning.head_rows))

    def _swap(self, state: IndexState) -> None:
        self._state = state
