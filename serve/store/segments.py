"""Segments on disk: immutable, checksummed, memory-mapped pieces of the index; a manifest names them.

    segments/NAME/keys.i64       ascending keys
    segments/NAME/vectors.f32    their vectors, row by row
    segments/NAME/records.*      their ids, labels and metadata; see `serve.store.records`
    segments/NAME/index.faiss    an approximate index over them, if the collection has one
    manifest.json                which segments count, with checksums of their files

A segment is written and waited for before the manifest names it, and deleted once that no longer does. All of
it derives from the database: what is damaged or missing is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from serve.store import approximate
from serve.store.approximate import EXACT, FaissIndex
from serve.store.database import Database
from serve.store.device import copy_to_device
from serve.store.files import checksum_of, disk_errors, replace_file, sync_file, sync_folder, write_synced
from serve.store.parts import Part
from serve.store.protocol import Vectors
from serve.store.records import TEXT, SegmentRecords, write_records
from serve.store.rows import sequence as last_write

_log = logging.getLogger(__name__)

FORMAT = 1
_BLOCK_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Entry:
    """A segment as the manifest names it.

    Attributes:
        name: Its folder.
        rows: Number of rows.
        index: Factory string of its index.
        files: Checksums by file name.
        sequence: Number of the last write whose edits its records contain.
        effort: How far a search has to look in the graph, as measured when it was built.
    """

    name: str
    rows: int
    index: str
    files: dict[str, str]
    sequence: int = 0
    effort: int | None = None


class SegmentFolder:
    """The segments of one collection."""

    def __init__(self, place: Path, database: Database, dim: int, effort: int | None, device: str) -> None:
        self._place = place
        self._folder = place / "segments"
        self._database = database
        self._store_id = database.store_id
        self._dim = dim
        self._effort = effort
        self._device = device

    def load(self, sequence: int, *, read_only: bool) -> tuple[list[Part], dict[str, Entry]]:
        """Every undamaged segment of the manifest; deletes others unless it is to read only.

        Args:
            sequence: Number of the last write in the database. Segments with later ones show that an older
                database was put back; none is used then, now or later, for its next writes will take the same
                numbers.
            read_only: Change nothing on disk.
        """
        parts: list[Part] = []
        entries = {}
        for entry in self._manifest():
            folder = self._folder / entry.name
            try:
                damaged = [name for name, sum_ in entry.files.items() if checksum_of(folder / name) != sum_]
            except OSError as error:
                damaged = [str(error)]
            if damaged:
                _log.warning(
                    "segment %s is damaged (%s); rebuilding it from the database", folder, damaged[0]
                )
                continue
            parts.append(self.map(entry))
            entries[entry.name] = entry
        newest = [max(int(part.keys[-1]), part.recorded) for part in parts]
        if any(number > sequence for number in newest):
            _log.warning("%s is older than its snapshot; rebuilding that from it", self._place)
            parts, entries = [], {}
            if not read_only:
                (self._place / "manifest.json").unlink()
                sync_folder(self._place)
        if not read_only:
            self.clean(set(entries))
        return parts, entries

    def map(self, entry: Entry) -> Part:
        """A segment as a part, its vectors mapped into memory."""
        folder = self._folder / entry.name
        keys = np.fromfile(folder / "keys.i64", "<i8").astype(np.int64, copy=False)
        vectors = self._vectors(entry)
        index = None
        if "index.faiss" in entry.files:
            effort = self._effort or entry.effort
            index = FaissIndex.load(folder / "index.faiss", entry.index, vectors, effort)
        device = copy_to_device(vectors, self._device) if index is None else None
        records = SegmentRecords(folder) if TEXT in entry.files else None
        return Part(
            entry.name,
            keys,
            vectors,
            approximate=index,
            device=device,
            records=records,
            recorded=entry.sequence,
        )

    def _vectors(self, entry: Entry) -> Vectors:
        path = self._folder / entry.name / "vectors.f32"
        return np.asarray(np.memmap(path, "<f4", "r", shape=(entry.rows, self._dim)))

    def write(
        self,
        parts: Sequence[Part],
        index: str,
        *,
        base: Part | None,
        threads: int,
        stop: Callable[[], bool],
    ) -> Entry | None:
        """Merges the live rows of parts into a new segment, and waits until the disk has it.

        Where one of them has a graph and all others only later rows, these are added to a copy of that graph,
        which is many times quicker than building one of all rows; its dead rows then stay.

        Args:
            parts: What to merge.
            base: The part whose graph may grow, None to begin anew.
            index: Factory string of its approximate index; "Flat" for none.
            threads: OpenMP threads for building that.
            stop: Asked now and then; True abandons the work.

        Returns:
            The segment, or None if no row is alive or the work was abandoned.

        Raises:
            DiskFull: The disk took no more; nothing is left of the segment.
        """
        rows = [np.arange(len(part)) if part is base else part.live_rows() for part in parts]
        keys = np.concatenate([part.keys[chosen] for part, chosen in zip(parts, rows, strict=True)])
        if len(keys) == 0:
            return None
        owner = np.repeat(np.arange(len(parts)), [len(chosen) for chosen in rows])
        row = np.concatenate(rows)
        order = np.argsort(keys)
        name = uuid.uuid4().hex
        folder = self._folder / name
        folder.mkdir(parents=True)
        try:
            blocks = _gathered(parts, owner[order], row[order], self._dim)
            with self._database.read() as connection:
                sequence = last_write(connection)
            files = write_records(self._database, keys[order], folder) | {
                "keys.i64": write_synced(folder / "keys.i64", [keys[order].astype("<i8").tobytes()]),
                "vectors.f32": write_synced(folder / "vectors.f32", blocks),
            }
            entry = Entry(name, len(keys), index, files, sequence)
            if index != EXACT:
                vectors = self._vectors(entry)
                path = folder / "index.faiss"
                grown = None if base is None else (self._folder / str(base.name) / "index.faiss", len(base))
                with disk_errors(path):
                    if approximate.build(index, vectors, path, grown=grown, threads=threads, stop=stop):
                        files["index.faiss"] = sync_file(path)
                        built = FaissIndex.load(path, index, vectors)
                        entry = replace(entry, effort=approximate.demanded_effort(built, vectors))
            if stop():
                shutil.rmtree(folder, ignore_errors=True)
                return None
            sync_folder(folder)
            sync_folder(self._folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return entry

    def commit(self, entries: Sequence[Entry], sequence: int) -> None:
        """Makes these the segments that count from now on, and deletes all others."""
        body = {
            "format": FORMAT,
            "store_id": self._store_id,
            "sequence": sequence,
            "segments": [asdict(entry) for entry in entries],
        }
        text = json.dumps({"checksum": _checksum(body), "body": body}, indent=1)
        replace_file(self._place / "manifest.json", text.encode())
        self.clean({entry.name for entry in entries})

    def clean(self, keep: set[str]) -> None:
        """Deletes segments that are not to be kept. Mapped ones stay readable to who holds them."""
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in keep:
                    shutil.rmtree(folder, ignore_errors=True)
            sync_folder(self._folder)

    def sequence(self) -> int:
        """Last write that the segments contain, as far as the manifest knows."""
        return int(self._body().get("sequence", 0))

    def _manifest(self) -> list[Entry]:
        return [Entry(**entry) for entry in self._body().get("segments", [])]

    def _body(self) -> dict[str, Any]:
        """The manifest's content; empty where it is missing, damaged or another store's."""
        try:
            content = json.loads((self._place / "manifest.json").read_text("utf-8"))
            body: dict[str, Any] = content["body"]
            sound = content["checksum"] == _checksum(body) and body["format"] == FORMAT
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, OSError):
            sound = False
        if not sound or body["store_id"] != self._store_id:
            _log.warning("%s is damaged or another store's; rebuilding from the database", self._place)
            return {}
        return body


def _gathered(parts: Sequence[Part], owner: Any, row: Any, dim: int) -> Iterator[memoryview]:
    """Vectors in the given order, block by block, so that no second copy of all of them is in memory."""
    for start in range(0, len(row), _BLOCK_ROWS):
        owners, rows = owner[start : start + _BLOCK_ROWS], row[start : start + _BLOCK_ROWS]
        block = np.empty((len(rows), dim), "<f4")
        for number in np.unique(owners):
            mine = owners == number
            block[mine] = parts[number].vectors[rows[mine]]
        yield block.data.cast("B")


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
