"""The database of one collection: an SQLite file in WAL mode with every item; its settings; group commit.

One connection writes (`Database.write`), and a pool of connections reads; in WAL mode neither waits for the
other. `synchronous=FULL` makes COMMIT return only once the log is on the disk.

Every write takes the next log sequence numbers (LSN). The LSN that stored an item's vector is the id of its
row. Row ids are never reused.

Writes that arrive while the disk is busy share the next transaction (`GroupCommit`). The thread that gets the
lock commits all waiting writes, its own and those of others, publishes the change as a new version, and
then acknowledges; the other threads find their writes done.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from models.errors import InputError
from serve.store.ann import approximate
from serve.store.ann.approximate import EXACT
from serve.store.items import Definition
from serve.store.store_folder import DATABASE, UNFINISHED, disk_errors, sync_folder
from serve.store.types import (
    DiskFull,
    ItemId,
    ReadOnly,
    RowIds,
    StoreBehind,
    StoreDamaged,
    StoreError,
    Vectors,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Format 1 had no table of edits.
FORMAT = 2
_READABLE = (1, 2)

# `key` is the row id, `sequence` an LSN. Vectors and thumbnails have tables of their own, so that a scan of
# items reads neither. `id` has no declared type, which keeps the integer 1 and the text "1" different.
# `edits` has the LSN of the last write that changed a row's label or metadata.
_EDITS = "CREATE TABLE edits (key INTEGER PRIMARY KEY, sequence INTEGER NOT NULL)"
_SCHEMA = f"""
CREATE TABLE properties (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (key INTEGER PRIMARY KEY, id NOT NULL UNIQUE, label TEXT, metadata TEXT);
CREATE TABLE vectors (key INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE thumbnails (key INTEGER PRIMARY KEY, image BLOB NOT NULL);
{_EDITS};
CREATE INDEX "payload:label" ON items (label) WHERE label IS NOT NULL;
"""


class Database:
    """Opens the file that `create_database` made; with `read_only` it never writes to it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._process = os.getpid()
        self._idle: deque[sqlite3.Connection] = deque()
        self._closing = threading.Event()
        self._writer: sqlite3.Connection | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        with self.read() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'properties'").fetchone():
                raise StoreDamaged(
                    f"{self.path} holds no collection; put a backup in its place, or delete its folder"
                )
            properties = dict(connection.execute("SELECT name, value FROM properties").fetchall())
        if properties.get("format") not in _READABLE:
            raise StoreError(
                f"{self.path} has format {properties.get('format')}, this version reads {FORMAT}"
            )
        self.store_id = str(properties["store_id"])
        if not self.read_only:
            with _translated(self.path):
                self._writer = _writer(self._connect())
                self._opened = self.path.stat()
                if properties["format"] == 1:
                    with self.write() as connection:
                        connection.execute(_EDITS)
                        connection.execute("UPDATE properties SET value = ? WHERE name = 'format'", (FORMAT,))

    def _connect(self, *, query_only: bool = False) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rw"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30.0, cached_statements=256
        )
        if query_only:
            connection.execute("PRAGMA query_only = 1")
        return connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: durable when the block ends, undone when it raises. One at a time.

        Raises:
            DiskFull: The disk took no more.
            ReadOnly: The store is open for reading only.
            StoreDamaged: The file is no longer where it was opened: what is written would be lost with it.
            OSError: The disk failed.
        """
        self._check_open()
        if self._writer is None:
            raise ReadOnly(f"{self.path.parent} is open for reading only")
        try:
            in_place = os.path.samestat(self.path.stat(), self._opened)
        except OSError:
            in_place = False
        if not in_place:
            raise StoreDamaged(
                f"{self.path} was moved, deleted or replaced while it was open; nothing was written. "
                "Stop this process and open the store again"
            )
        with _translated(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that reads. Each statement sees one version, and holds it only until its last row."""
        self._check_open()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect(query_only=True)
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            raise _damage(error, self.path) or error from None
        finally:
            if self._closing.is_set():
                connection.close()
            else:
                self._idle.append(connection)

    @contextlib.contextmanager
    def read_transaction(self) -> Iterator[sqlite3.Connection]:
        """As `read`, but all statements of the block see the same version; keep the block short."""
        with self.read() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def vacuum(self) -> None:
        """Rewrites the file without deleted data and empties the log. Nobody may write meanwhile."""
        if self._writer is None:
            raise ReadOnly(f"{self.path.parent} is open for reading only")
        with _translated(self.path):
            self._writer.execute("VACUUM")
            busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(f"A reader kept the log of {self.path} from being emptied; purge again")

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            # Neither SQLite's connections nor the threads of the store survive a fork.
            raise StoreError(
                f"The collection {self.path.parent.name!r} was opened before this process was forked; "
                "open a store in the process that uses it (two processes need the service)"
            )
        if self._closing.is_set():
            raise StoreError(f"The collection {self.path.parent.name!r} is closed; open it again")

    def close(self) -> None:
        """Closes every idle connection; one in use is closed when its user is done."""
        self._closing.set()
        while self._idle:
            self._idle.pop().close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _writer(connection: sqlite3.Connection) -> sqlite3.Connection:
    """The connection, set up for writing."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA cache_size = -16384")
    return connection


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise DiskFull(f"The disk of {path.parent} is full; free some space and try again") from error
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR:
            raise OSError(errno.EIO, "The disk failed; nothing was acknowledged", str(path)) from error
        raise
    except sqlite3.DatabaseError as error:
        raise _damage(error, path) or error from None


def _damage(error: sqlite3.DatabaseError, path: Path) -> StoreDamaged | None:
    """The error to raise where SQLite found its file corrupt; None for other errors."""
    code = getattr(error, "sqlite_errorcode", 0)  # SQLite's own; mistakes in using the module have none
    if code & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return None
    return StoreDamaged(f"{path} is damaged ({error}); put a backup in its place, without its -wal and -shm")


def last_lsn(connection: sqlite3.Connection) -> int:
    """LSN of the last write."""
    return int(connection.execute("SELECT value FROM properties WHERE name = 'sequence'").fetchone()[0])


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes, threads and the device; the defaults suit a server.

    Attributes:
        search_threads: OpenMP threads of one search; 1 is best where several requests run at a time.
        build_threads: OpenMP threads of a background build.
        memtable_rows: Rows that a memtable takes before it becomes a segment on disk.
        approximate_rows: A segment gets the collection's approximate index from this many rows on.
        transaction_rows: Most items that one transaction writes.
        settle_seconds: Seconds without a write after which all segments of a collection with an approximate
            index are merged, so that a search asks one index.
        device: Where exact segments are scanned: "cpu", a CUDA device, or "auto", CUDA where there is one.
    """

    search_threads: int = 1
    build_threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2))
    memtable_rows: int = 16_384
    approximate_rows: int = 10_000
    transaction_rows: int = 20_000
    settle_seconds: float = 20.0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class FaissDefinition(Definition):
    """Settings of an embedded collection; `index` is its index factory string."""

    index: str


def create_database(place: Path, dim: int, fingerprint: str | None, index: str | None) -> None:
    """Makes an empty collection in a new folder, atomically: after a crash it exists whole or not at all.

    Raises:
        StoreError: The index is not known to work, dim is below 1, or other files lie at the place.
        DiskFull: The disk took no more.
    """
    if dim < 1:
        raise StoreError("A new collection needs dim, the length of its vectors")
    approximate.check(index or EXACT, dim)
    if place.is_dir() and any(place.iterdir()):
        raise StoreError(f"{place} holds files of no collection; move them away")
    temporary = place.with_name(f"{UNFINISHED}{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(temporary):
            temporary.mkdir()
            _create_schema(temporary / DATABASE, FaissDefinition(dim, fingerprint, index or EXACT))
            sync_folder(temporary)
            temporary.replace(place)
            sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _create_schema(path: Path, definition: FaissDefinition) -> None:
    start = {"format": FORMAT, "store_id": uuid.uuid4().hex, "sequence": 0, **asdict(definition)}
    with _translated(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA page_size = 8192")
        _writer(connection).execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.executemany("INSERT INTO properties VALUES (?, ?)", start.items())
        connection.execute("COMMIT")


def settled(
    database: Database, dim: int | None, fingerprint: str | None, index: str | None
) -> FaissDefinition:
    """The definition in the database, checked against the caller's; a new index replaces the old one.

    Raises:
        DimensionMismatch: The collection has another dim.
        FingerprintMismatch: It has another fingerprint.
        StoreError: The index is not known to work, or an earlier version left the collection without a dim.
    """
    with database.read() as connection:
        kept = dict(connection.execute("SELECT name, value FROM properties").fetchall())
    known = kept.get("dim", dim)
    if known is None or known < 1:
        raise StoreError(
            f"{database.path.parent} was never finished; delete the collection and make it again"
        )
    definition = FaissDefinition(
        int(known), kept.get("fingerprint", fingerprint), index or str(kept.get("index", EXACT))
    )
    definition.check(dim, fingerprint)
    changed = asdict(definition)
    if not database.read_only and changed.items() - kept.items():
        if definition.index != kept.get("index"):
            approximate.check(definition.index, definition.dim)
        with database.write() as connection:
            connection.executemany("INSERT OR REPLACE INTO properties VALUES (?, ?)", changed.items())
    return definition


@dataclass(frozen=True, slots=True)
class AddedRows:
    """New rows: their ids, vectors, and of each the item's id, label and metadata as JSON text."""

    row_ids: RowIds
    vectors: Vectors
    records: list[tuple[ItemId, str | None, str | None]]


@dataclass(slots=True)
class WriteBatch:
    """What a transaction does to the index: the rows that it removes, adds and edits (label or metadata).

    `began` is the LSN before it, `lsn` that of its last write.
    """

    began: int
    lsn: int
    removed: list[RowIds] = field(default_factory=list)
    added: list[AddedRows] = field(default_factory=list)
    edited: list[int] = field(default_factory=list)

    def append(self, later: WriteBatch) -> None:
        """Adds what a later work of the same transaction does."""
        self.lsn = later.lsn
        self.removed += later.removed
        self.added += later.added
        self.edited += later.edited


Work: TypeAlias = Callable[[sqlite3.Connection, WriteBatch], T]

# Most works of one transaction; without a bound the first of them might wait very long.
_GROUP = 64


class GroupCommit:
    """Runs works in transactions of `database`; `publish` gets the batch before any is acknowledged.

    Where `publish` fails, the works raise `StoreBehind`: they are durable, and the owner of the version has
    to bring it up to date later.
    """

    def __init__(self, database: Database, publish: Callable[[WriteBatch], None]) -> None:
        self._database = database
        self._publish = publish
        self._lock = threading.Lock()
        self._queue: deque[tuple[Work[Any], Future[Any]]] = deque()

    def run(self, work: Work[T]) -> T:
        """Runs a work in a transaction and returns its result once that is durable and published.

        The work gets the writing connection and the `WriteBatch` to fill in. If it raises an `InputError`,
        only this work is undone; others in the same transaction go on.
        """
        future: Future[T] = Future()
        self._queue.append((work, future))
        with self._lock:
            while not future.done():
                self._commit([self._queue.popleft() for _ in range(min(_GROUP, len(self._queue)))])
        return future.result()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps transactions from beginning or ending within the block."""
        with self._lock:
            yield

    def _commit(self, group: list[tuple[Work[Any], Future[Any]]]) -> None:
        results: list[tuple[Future[Any], Any, InputError | None]] = []
        try:
            with self._database.write() as connection:
                began = last_lsn(connection)
                batch = WriteBatch(began, began)
                results = [(future, *_run(work, connection, batch)) for work, future in group]
                connection.execute("UPDATE properties SET value = ? WHERE name = 'sequence'", (batch.lsn,))
        except (StoreError, sqlite3.Error, OSError) as error:
            if len(group) > 1:  # one may be too large for the disk, and the others need not fail with it
                for waiting in group:
                    self._commit([waiting])
            else:
                group[0][1].set_exception(error)
        except BaseException as error:
            for _, future in group:  # or their threads would wait for ever
                future.set_exception(error)
            raise
        else:
            unseen: StoreBehind | None = None
            try:
                self._publish(batch)
            except BaseException as error:
                unseen = StoreBehind(
                    "The write is stored, but searches do not see it yet: "
                    f"{type(error).__name__}; they will soon, do not write it again"
                )
                if not isinstance(error, Exception):
                    raise
                _log.exception("a write is stored, but searches do not see it yet")
            finally:
                for future, result, refusal in results:
                    trouble = refusal or unseen
                    if trouble is None:
                        future.set_result(result)
                    else:
                        future.set_exception(trouble)


def _run(
    work: Work[T], connection: sqlite3.Connection, batch: WriteBatch
) -> tuple[T | None, InputError | None]:
    """Runs one work of a group, and undoes it if it refuses its input."""
    own = WriteBatch(batch.lsn, batch.lsn)
    connection.execute("SAVEPOINT work")
    try:
        result = work(connection, own)
    except InputError as error:
        connection.execute("ROLLBACK TO work")
        return None, error
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE work")
    batch.append(own)
    return result, None
