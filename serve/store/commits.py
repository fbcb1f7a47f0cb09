"""Group commit: writes that arrive while the disk is busy share the next transaction.

A write goes commit → publish → acknowledge. Whoever gets the lock commits everything that waits, its own work
and that of others, then publishes the changes to the searchable state; the others find their work done.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

from models.errors import InputError
from serve.store.database import Database
from serve.store.protocol import StoreBehind, StoreError
from serve.store.rows import Changes, sequence

_log = logging.getLogger(__name__)

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection, Changes], T]

# Works in one transaction, at most; keeps the first of them from waiting for ever longer groups.
_GROUP = 64


class _Pending:
    """A work that waits for its transaction."""

    def __init__(self, work: Work[Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class Commits:
    """Runs works in transactions of `database`; `publish` gets the changes before any is acknowledged.

    Where `publish` fails, the works are told that they are durable all the same (`StoreBehind`), and whoever
    holds the state has to bring it up to date later.
    """

    def __init__(self, database: Database, publish: Callable[[Changes], None]) -> None:
        self._database = database
        self._publish = publish
        self._lock = threading.Lock()
        self._queue: deque[_Pending] = deque()

    def run(self, work: Work[T]) -> T:
        """Runs a work in a transaction and returns its result once that is durable and published.

        The work gets the writing connection and the `Changes` to fill in. An `InputError` from it undoes it
        alone; what shares its transaction goes on.
        """
        pending = _Pending(work)
        self._queue.append(pending)
        with self._lock:
            while not pending.done:
                self._commit([self._queue.popleft() for _ in range(min(_GROUP, len(self._queue)))])
        if pending.error is not None:
            raise pending.error
        result: T = pending.result
        return result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No transaction begins or ends within the block."""
        with self._lock:
            yield

    def _commit(self, group: list[_Pending]) -> None:
        results: list[tuple[_Pending, Any, InputError | None]] = []
        try:
            with self._database.write() as connection:
                began = sequence(connection)
                changes = Changes(began, began)
                results = [(pending, *_run(pending.work, connection, changes)) for pending in group]
                connection.execute(
                    "UPDATE properties SET value = ? WHERE name = 'sequence'", (changes.sequence,)
                )
        except (StoreError, sqlite3.Error, OSError) as error:
            if len(group) > 1:  # one of them may be too large for the disk; the others need not fail with it
                for pending in group:
                    self._commit([pending])
                return
            group[0].error, group[0].done = error, True
        except BaseException as error:
            for pending in group:  # nobody may wait for ever on a work that was taken from the queue
                pending.error, pending.done = error, True
            raise
        else:
            unseen: StoreBehind | None = None
            try:
                self._publish(changes)
            except BaseException as error:
                unseen = StoreBehind(
                    "The write is stored, but searches do not see it yet: "
                    f"{type(error).__name__}; they will soon, do not write it again"
                )
                if not isinstance(error, Exception):
                    raise
                _log.exception("a write is stored, but searches do not see it yet")
            finally:
                for pending, result, refusal in results:
                    pending.result, pending.error, pending.done = result, refusal or unseen, True


def _run(
    work: Work[T], connection: sqlite3.Connection, changes: Changes
) -> tuple[T | None, InputError | None]:
    """Runs one work of a group; what it did is undone when it refuses its input."""
    before = changes.copy()
    connection.execute("SAVEPOINT work")
    try:
        result = work(connection, changes)
    except InputError as error:
        connection.execute("ROLLBACK TO work")
        changes.restore(before)
        return None, error
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE work")
    return result, None
