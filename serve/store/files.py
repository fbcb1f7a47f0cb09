"""Files that are there whole or not at all, and that notice when a byte of them changes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from serve.store.protocol import DiskFull


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a restart after a crash, finds the old or the new one whole.

    Raises:
        DiskFull: The disk took no more; the old file is still there.
    """
    temporary = path.with_name(path.name + ".new")
    write_synced(temporary, [content])
    temporary.replace(path)
    sync_folder(path.parent)


def write_synced(path: Path, blocks: Iterable[bytes | memoryview]) -> str:
    """Writes blocks to a new file, waits until the disk has them, and returns their checksum.

    Raises:
        DiskFull: The disk took no more; the file is gone again.
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
    """Waits until the disk has a file that something else wrote, and returns its checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return checksum_of(path)


def checksum_of(path: Path) -> str:
    """Checksum of a file's content (BLAKE2b, 128 bits, hexadecimal)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sync_folder(folder: Path) -> None:
    """Waits until the disk knows which files are in a folder."""
    if os.name == "nt":  # where folders cannot be opened, and renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def bytes_below(folder: Path) -> int:
    """Bytes of all files in a folder and below; one that is deleted meanwhile counts nothing."""
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
