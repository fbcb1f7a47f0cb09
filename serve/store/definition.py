"""What a collection is for (kept in its database), and how much work it does at a time (given at opening)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from serve.store import factory
from serve.store.approximate import EXACT
from serve.store.database import Database
from serve.store.files import disk_errors, sync_folder
from serve.store.folder import DATABASE, UNFINISHED
from serve.store.protocol import DimensionMismatch, FingerprintMismatch, StoreError


@dataclass(frozen=True, slots=True)
class Tuning:
    """Sizes, threads and the device; the defaults suit a server.

    Attributes:
        search_threads: OpenMP threads of one search; 1 is best where several requests run at a time.
        build_threads: OpenMP threads of a background build.
        head_rows: Recent vectors that are kept in one piece of memory before they become a segment.
        approximate_rows: A segment gets the collection's approximate index from this many rows on.
        transaction_rows: Most items that one transaction writes.
        settle_seconds: A collection with an approximate index that nobody wrote to for so long gets all its
            segments merged, so that a search asks one index.
        device: Where exact segments are scanned: "cpu", a CUDA device, or "auto", CUDA where there is one.
    """

    search_threads: int = 1
    build_threads: int = field(default_factory=lambda: max(1, (os.cpu_count() or 1) // 2))
    head_rows: int = 16_384
    approximate_rows: int = 10_000
    transaction_rows: int = 20_000
    settle_seconds: float = 20.0
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Definition:
    """Length of the vectors, the model that makes them (if known), and the index factory string."""

    dim: int
    fingerprint: str | None
    index: str

    def check_fingerprint(self, given: str | None) -> None:
        """Raises FingerprintMismatch where both sides name a model, and not the same."""
        if given is not None and self.fingerprint is not None and given != self.fingerprint:
            raise FingerprintMismatch(
                f"The collection holds vectors of model {self.fingerprint}, not of {given}; "
                "embed with that model or build a new collection"
            )


def create(place: Path, dim: int, fingerprint: str | None, index: str | None) -> None:
    """Makes an empty collection, which is there whole, whatever happens meanwhile, or not at all.

    Args:
        place: Its folder; the one above exists.
        dim: Length of a vector.
        fingerprint: The model that makes the vectors, if known.
        index: Its index; None means exact.

    Raises:
        StoreError: The index is not known to work, dim is below 1, or other files lie at the place.
        DiskFull: The disk took no more.
    """
    if dim < 1:
        raise StoreError("A new collection needs dim, the length of its vectors")
    factory.check(index or EXACT, dim)
    if place.is_dir() and any(place.iterdir()):
        raise StoreError(f"{place} holds files of no collection; move them away")
    temporary = place.with_name(f"{UNFINISHED}{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(temporary):
            temporary.mkdir()
            properties = {"dim": dim, "fingerprint": fingerprint, "index": index or EXACT}
            Database.create(temporary / DATABASE, properties)
            sync_folder(temporary)
            temporary.replace(place)
            sync_folder(place.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def settled(database: Database, dim: int | None, fingerprint: str | None, index: str | None) -> Definition:
    """The definition in the database, compared with what the caller says of it; another index takes over.

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
    definition = Definition(
        int(known),
        kept.get("fingerprint", fingerprint),
        index or str(kept.get("index", EXACT)),
    )
    if dim is not None and dim != definition.dim:
        raise DimensionMismatch(f"The collection takes vectors of {definition.dim} numbers, not {dim}")
    definition.check_fingerprint(fingerprint)
    changed = {"dim": definition.dim, "fingerprint": definition.fingerprint, "index": definition.index}
    if not database.read_only and changed.items() - kept.items():
        if definition.index != kept.get("index"):
            factory.check(definition.index, definition.dim)
        with database.write() as connection:
            connection.executemany("INSERT OR REPLACE INTO properties VALUES (?, ?)", changed.items())
    return definition
