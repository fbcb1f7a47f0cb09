"""One process owns a folder: a lock that dies with its process."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from serve.store.protocol import StoreLocked


class FolderLock:
    """Holds `folder/lock.db` open in an exclusive transaction until `release`.

    SQLite's own file locking does it the same way on every system, is not inherited by forked children, and
    refuses a second owner within the process as well.

    Raises:
        StoreLocked: Somebody else holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(
            folder / "lock.db", isolation_level=None, timeout=0.0, check_same_thread=False
        )
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise StoreLocked(
                f"{folder} is in use by another process; stop it, or open the store for reading only"
            ) from None

    def release(self) -> None:
        """Gives the folder up; a second call does nothing."""
        self._connection.close()
