"""A store's folder on disk, its lock, and atomic, durable writes of files.

lock.db                   held by the process that owns the folder
catalogue.json            aliases
collections/NAME/         one collection: items.db with every item, and the segments derived from it
collections/.new-NAME     a collection being made, .old-NAME being deleted; the next opening removes leftovers
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from serve.store.items import check_alias, check_name, check_removable, is_name
from serve.store.types import DiskFull, ReadOnly, StoreDamaged, StoreError, StoreLocked, StoreMissing

DATABASE = "items.db"
UNFINISHED, _DELETED = ".new-", ".old-"
"""Prefixes of a collection's folder while it is made or deleted; no collection's name begins so."""


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file atomically and durably: a reader, or a restart after a crash, finds the old or the new.

    Raises:
        DiskFull: No space is left; the old file stays.
    """
    temporary = path.with_name(path.name + ".new")
    write_synced(temporary, [content])
    temporary.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Writes blocks to a new file, waits until the disk has them, and returns their checksum.

    Raises:
        DiskFull: No space is left; the file is removed.
    """
    checksum = hashlib.blake2b(digest_size=16)
    with disk_errors(path):
        try:
            with path.open("wb") as file:
                for block in blocks:
                    file.write(block)
                    checksum.update(block)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return checksum.hexdigest()


def sync_file(path: Path) -> str:
    """Waits until the disk has a file that other code wrote, and returns its checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return checksum_of(path)


def checksum_of(path: Path) -> str:
    """Checksum of a file's content (BLAKE2b, 128 bits, hexadecimal)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync_folder(folder: Path) -> None:
    """Waits until the disk has a folder's list of files."""
    if os.name == "nt":  # folders cannot be opened there, and renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder and below; a file that is deleted meanwhile counts as 0."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's "no space" errors into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFull(f"The disk of {path.parent} is full; free some space and try again") from error
        raise


def _lock(folder: Path) -> sqlite3.Connection:
    """Takes a folder for this process until the connection is closed.

    It keeps an exclusive transaction open on `lock.db`. SQLite's file locking works the same way on every
    system, is not inherited by forked children, and refuses a second owner within the process as well.

    Raises:
        StoreLocked: The folder is in use.
    """
    connection = sqlite3.connect(
        folder / "lock.db", isolation_level=None, timeout=0.0, check_same_thread=False
    )
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.DatabaseError as error:
        connection.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise StoreDamaged(f"{folder / 'lock.db'} is no lock of a store; delete this file") from error
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        raise StoreLocked(
            f"{folder} is in use by another process; stop it, or open the store for reading only"
        ) from None
    return connection


class _Catalogue(msgspec.Struct):
    """The content of `catalogue.json`."""

    aliases: dict[str, str]


class StoreFolder:
    """Opens the folder and takes its lock (unless only for reading)."""

    def __init__(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        path = path.absolute()  # the process may change its folder
        self.path = path
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file; a store is a folder")
        if not (path / "collections").is_dir():
            if read_only or not create:
                raise StoreMissing(f"There is no store in {path}; build one with `kindred index`")
            if path.is_dir() and any(path.iterdir()) and not (path / "lock.db").exists():
                raise StoreError(f"{path} holds other files; name an empty or a new folder for the store")
            new = [folder for folder in (path / "collections", path, *path.parents) if not folder.exists()]
            (path / "collections").mkdir(parents=True, exist_ok=True)
            for folder in new:
                sync_folder(folder.parent)
        self._lock = None if read_only else _lock(path)
        if self._lock is not None:
            for start in (UNFINISHED, _DELETED):
                for left in (path / "collections").glob(f"{start}*"):
                    shutil.rmtree(left, ignore_errors=True)

    def collections(self) -> list[str]:
        """Names of the collections, sorted."""
        found = (path.parent.name for path in (self.path / "collections").glob(f"*/{DATABASE}"))
        return sorted(filter(is_name, found))

    def aliases(self) -> dict[str, str]:
        """Collections by alias."""
        path = self.path / "catalogue.json"
        if not path.exists():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Catalogue).aliases
        except msgspec.DecodeError as error:
            raise StoreDamaged(
                f"{path} is damaged ({error}); put a backup in its place, or delete it and set aliases anew"
            ) from error

    def place(self, name: str) -> Path:
        """The folder of a collection, given its name or alias, whether it exists or not."""
        return self.path / "collections" / check_name(self.aliases().get(name, name))

    def set_alias(self, alias: str, name: str | None) -> None:
        """Points an alias at a collection, or removes it (None), atomically."""
        self._need_lock()
        check_alias(alias, name, self.collections(), self.path)
        aliases = self.aliases()
        if name is None:
            aliases.pop(alias, None)
        else:
            aliases[alias] = name
        text = json.dumps({"aliases": aliases}, indent=1, sort_keys=True)
        replace_file(self.path / "catalogue.json", text.encode())

    def check_removable(self, name: str) -> None:
        """Checks that a collection may be deleted; see `items.check_removable`."""
        self._need_lock()
        check_removable(name, self.collections(), self.aliases(), self.path)

    def remove(self, name: str) -> None:
        """Deletes the files of a closed collection that passed `check_removable`."""
        place = self.path / "collections" / name
        deleted = place.replace(place.with_name(f"{_DELETED}{name}"))
        sync_folder(place.parent)
        shutil.rmtree(deleted)
        sync_folder(place.parent)

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._lock is not None:
            self._lock.close()

    def _need_lock(self) -> None:
        if self._lock is None:
            raise ReadOnly(f"{self.path} is open for reading only")
