"""The durable truth of one collection: an SQLite file in WAL mode, its schema and its connections.

There is one connection that writes, under the lock of whoever holds `Database.write`, and a pool of
connections that read; in WAL mode neither waits for the other. `synchronous=FULL` makes COMMIT return only
once the log is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve.store.protocol import DiskFull, ReadOnly, StoreDamaged, StoreError

# Format 1 had no table of edits.
FORMAT = 2
_READABLE = (1, 2)

# `key` is the sequence number of the write that stored this version of an item: a key never changes meaning
# and is never used again. Vectors and thumbnails lie apart: a scan over one never reads the other. `id` has
# no declared type, which keeps the integer 1 and the text "1" different. `edits` has the number of the last
# write that changed an item's label or metadata under the same key.
_SCHEMA = """
CREATE TABLE properties (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE items (key INTEGER PRIMARY KEY, id NOT NULL UNIQUE, label TEXT, metadata TEXT);
CREATE TABLE vectors (key INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE thumbnails (key INTEGER PRIMARY KEY, image BLOB NOT NULL);
CREATE TABLE edits (key INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE INDEX "payload:label" ON items (label) WHERE label IS NOT NULL;
"""


class Database:
    """Opens the file that `create` made; `read_only` does not write to it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
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
                if properties["format"] == 1:
                    self._add_edits()

    @staticmethod
    def create(path: Path, properties: Mapping[str, str | int | None]) -> None:
        """Makes an empty database with these properties beside its own.

        Raises:
            DiskFull: The disk took no more; the file may be there in part.
        """
        start = {"format": FORMAT, "store_id": uuid.uuid4().hex, "sequence": 0, **properties}
        with _translated(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA page_size = 8192")
            _writer(connection).execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.executemany("INSERT INTO properties VALUES (?, ?)", start.items())
            connection.execute("COMMIT")

    def _connect(self, *, query_only: bool = False) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rw"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30.0, cached_statements=256
        )
        if query_only:
            connection.execute("PRAGMA query_only = 1")
        return connection

    def _add_edits(self) -> None:
        with self.write() as connection:
            connection.execute("CREATE TABLE edits (key INTEGER PRIMARY KEY, sequence INTEGER NOT NULL)")
            connection.execute("UPDATE properties SET value = ? WHERE name = 'format'", (FORMAT,))

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: durable when the block ends, undone when it raises. One at a time.

        Raises:
            DiskFull: The disk took no more.
            ReadOnly: The store is open for reading only.
            OSError: The disk failed.
        """
        self._check_open()
        if self._writer is None:
            raise ReadOnly(f"{self.path.parent} is open for reading only")
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
        """A connection that reads; each statement run to its end sees one state and pins nothing after."""
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
        """As `read`, with all statements of the block on the same state; keep the block short."""
        with self.read() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    def vacuum(self) -> None:
        """Rewrites the file without what was deleted, and empties the log. Nobody may write meanwhile."""
        if self._writer is None:
            raise ReadOnly(f"{self.path.parent} is open for reading only")
        with _translated(self.path):
            self._writer.execute("VACUUM")
            busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(f"A reader kept the log of {self.path} from being emptied; purge again")

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreError(f"The collection {self.path.parent.name!r} is closed; open it again")

    def close(self) -> None:
        """Closes every idle connection; those in use close when they are given back."""
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
    """What to say where SQLite found the file not to be what it wrote."""
    code = getattr(error, "sqlite_errorcode", 0)  # SQLite's own; mistakes in using the module have none
    if code & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return None
    return StoreDamaged(f"{path} is damaged ({error}); put a backup in its place, without its -wal and -shm")
