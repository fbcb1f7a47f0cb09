"""Segments on disk: immutable, checksummed, memory-mapped; a manifest names those that count.

    manifest.json                the segments that count, with checksums of their files
    segments/NAME/keys.i64       row ids, ascending
    segments/NAME/vectors.f32    their vectors, row by row
    segments/NAME/records.json   of each row its id, label and metadata, as JSON separated by commas
    segments/NAME/records.i64    where in it each row's id begins and ends, two numbers a row, and its length
    segments/NAME/index.faiss    an approximate index over them, if the collection has one

A segment is on disk before the manifest names it, and is deleted once the manifest no longer does. All of
it is derived from the database: what is damaged or missing is built again.

A search ends by reading the records of its hits. From SQLite that costs as much as the search of a graph, so
each segment has a copy. An edit of a label or metadata leaves the segment as it is: the ids of edited rows
are kept (also in the database, with the LSN of the edit), and their records are read from the database until
the segment is rewritten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.store.ann import approximate
from serve.store.ann.approximate import EXACT, FaissIndex
from serve.store.ann.flat import copy_to_device
from serve.store.database import Database, last_lsn
from serve.store.items import metadata_of
from serve.store.segment import Segment, SegmentEntry, SegmentRecords
from serve.store.store_folder import (
    checksum_of,
    disk_errors,
    replace_file,
    sync_file,
    sync_folder,
    write_synced,
)
from serve.store.types import RowIds, Vectors

_log = logging.getLogger(__name__)

FORMAT = 1
_IDS, _VECTORS, _INDEX = "keys.i64", "vectors.f32", "index.faiss"
_TEXT, _STARTS = "records.json", "records.i64"
# Vectors that are copied to memory at a time.
_BLOCK_ROWS = 16_384
# Records that one statement joins into a JSON text; its decoding holds the interpreter's lock for 1 ms.
_RECORDS = 2048
_Record = tuple[int, msgspec.Raw, msgspec.Raw, str | None]
_decode_records = msgspec.json.Decoder(list[_Record]).decode


class SegmentFolder:
    """The segments of one collection."""

    def __init__(self, place: Path, database: Database, dim: int, effort: int | None, device: str) -> None:
        self._place = place
        self._folder = place / "segments"
        self._database = database
        self._dim = dim
        self._effort = effort
        self._device = device

    def load(self, *, read_only: bool) -> list[Segment]:
        """Loads every undamaged segment of the manifest; deletes the others unless `read_only`.

        A segment with later writes than the database shows that an older database was restored. Then no
        segment is used, because the database's next writes will take the same LSNs.
        """
        with self._database.read() as connection:
            last = last_lsn(connection)
        segments: list[Segment] = []
        for found in self._body().get("segments", []):
            entry = SegmentEntry(**found)
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
            segments.append(self.map(entry))
        if any(s.entry and max(int(s.row_ids[-1]), s.entry.sequence) > last for s in segments):
            _log.warning("%s is older than its segments; rebuilding them from it", self._place)
            segments = []
            if not read_only:
                (self._place / "manifest.json").unlink()
                sync_folder(self._place)
        if not read_only:
            self._clean({segment.name for segment in segments})
        return segments

    def map(self, entry: SegmentEntry) -> Segment:
        """Opens a segment, its vectors mapped into memory."""
        folder = self._folder / entry.name
        row_ids = np.fromfile(folder / _IDS, "<i8").astype(np.int64, copy=False)
        vectors = self._vectors(entry)
        index = None
        if _INDEX in entry.files:
            effort = self._effort or entry.effort
            index = FaissIndex.load(folder / _INDEX, entry.index, vectors, effort)
        device = copy_to_device(vectors, self._device) if index is None else None
        records = SegmentRecords(folder / _TEXT, folder / _STARTS) if _TEXT in entry.files else None
        return Segment(
            entry.name,
            row_ids,
            vectors,
            approximate=index,
            device=device,
            records=records,
            entry=entry,
        )

    def _vectors(self, entry: SegmentEntry) -> Vectors:
        path = self._folder / entry.name / _VECTORS
        return np.asarray(np.memmap(path, "<f4", "r", shape=(entry.rows, self._dim)))

    def write(
        self,
        segments: Sequence[Segment],
        index: str,
        *,
        base: Segment | None,
        threads: int,
        stop: Callable[[], bool],
    ) -> SegmentEntry | None:
        """Merges the live rows of segments into a new segment, and waits until the disk has it.

        If one of them has a graph and all others only later rows, these are added to a copy of that graph,
        which is many times faster than building one of all rows; its dead rows then stay.

        Args:
            segments: The segments to merge.
            base: The segment whose graph grows; None builds a new one.
            index: Factory string of its approximate index; "Flat" for none.
            threads: OpenMP threads for building that.
            stop: Polled during the work; True abandons it.

        Returns:
            The segment, or None if no row is alive or the work was abandoned.

        Raises:
            DiskFull: No space is left; the unfinished segment is removed.
        """
        rows = [np.arange(len(segment)) if segment is base else segment.live_rows() for segment in segments]
        row_ids = np.concatenate(
            [segment.row_ids[chosen] for segment, chosen in zip(segments, rows, strict=True)]
        )
        if len(row_ids) == 0:
            return None
        owner = np.repeat(np.arange(len(segments)), [len(chosen) for chosen in rows])
        row = np.concatenate(rows)
        order = np.argsort(row_ids)
        name = uuid.uuid4().hex
        folder = self._folder / name
        self._folder.mkdir(exist_ok=True)  # not the collection's: a store that was deleted stays so
        folder.mkdir()
        try:
            blocks = _gathered(segments, owner[order], row[order], self._dim)
            with self._database.read() as connection:
                lsn = last_lsn(connection)
            lengths = np.zeros((len(row_ids), 2), np.int64)
            texts = _texts(self._database, row_ids[order], lengths)
            files = {_TEXT: write_synced(folder / _TEXT, texts)}  # this fills in the lengths
            starts = np.concatenate([[0], np.cumsum(lengths.ravel())])
            files |= {
                _STARTS: write_synced(folder / _STARTS, [starts.astype("<i8").tobytes()]),
                _IDS: write_synced(folder / _IDS, [row_ids[order].astype("<i8").tobytes()]),
                _VECTORS: write_synced(folder / _VECTORS, blocks),
            }
            entry = SegmentEntry(name, len(row_ids), index, files, lsn)
            if index != EXACT:
                vectors = self._vectors(entry)
                path = folder / _INDEX
                grown = None if base is None else (self._folder / str(base.name) / _INDEX, len(base))
                with disk_errors(path):
                    if approximate.build(index, vectors, path, grown=grown, threads=threads, stop=stop):
                        files[_INDEX] = sync_file(path)
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

    def commit(self, entries: Sequence[SegmentEntry], flushed: int) -> None:
        """Writes a manifest of these segments, which hold all writes up to `flushed`; deletes the others."""
        body = {
            "format": FORMAT,
            "store_id": self._database.store_id,
            "sequence": flushed,
            "segments": [asdict(entry) for entry in entries],
        }
        text = json.dumps({"checksum": _checksum(body), "body": body}, indent=1)
        replace_file(self._place / "manifest.json", text.encode())
        self._clean({entry.name for entry in entries})

    def _clean(self, keep: set[str | None]) -> None:
        """Deletes all other segments. Searches that have one mapped can still read it."""
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.name not in keep:
                    shutil.rmtree(folder, ignore_errors=True)
            sync_folder(self._folder)

    def flushed_lsn(self) -> int:
        """LSN of the last write that the segments contain, from the manifest."""
        return int(self._body().get("sequence", 0))

    def _body(self) -> dict[str, Any]:
        """The manifest's content; empty if it is missing, damaged or another store's."""
        try:
            content = json.loads((self._place / "manifest.json").read_text("utf-8"))
            body: dict[str, Any] = content["body"]
            sound = content["checksum"] == _checksum(body) and body["format"] == FORMAT
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, OSError):
            sound = False
        if not sound or body["store_id"] != self._database.store_id:
            _log.warning("%s is damaged or another store's; rebuilding from the database", self._place)
            return {}
        return body


def _gathered(segments: Sequence[Segment], owner: Any, row: Any, dim: int) -> Iterator[memoryview]:
    """Vectors in the given order, in blocks, so that memory never holds a second copy of all."""
    for start in range(0, len(row), _BLOCK_ROWS):
        owners, rows = owner[start : start + _BLOCK_ROWS], row[start : start + _BLOCK_ROWS]
        block = np.empty((len(rows), dim), "<f4")
        for number in np.unique(owners):
            mine = owners == number
            block[mine] = segments[number].vectors[rows[mine]]
        yield block.data.cast("B")


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _texts(database: Database, row_ids: RowIds, lengths: NDArray[np.int64]) -> Iterator[bytes]:
    """Records of rows with these ids (ascending), in pieces; an item that is gone has an empty record.

    Fills in `lengths` (n, 2), the bytes of each record's id and of the rest.
    """
    for start in range(0, len(row_ids), _RECORDS):
        chunk = row_ids[start : start + _RECORDS]
        with database.read() as connection:
            text = connection.execute(
                "SELECT json_group_array(json_array(key, id, label, metadata)) FROM "
                "(SELECT * FROM items WHERE key BETWEEN ? AND ? ORDER BY key)",
                (int(chunk[0]), int(chunk[-1])),
            ).fetchone()[0]
        pieces = []
        mine = set(chunk.tolist())
        found = [row for row in _decode_records(text) if row[0] in mine]
        at = start + np.searchsorted(chunk, [row[0] for row in found])
        for _, id_, label, metadata in found:
            # Unusable metadata is left out, or the segment could never be written.
            usable = metadata if metadata_of(metadata) else None
            pieces += [bytes(id_), b"," + bytes(label) + b"," + (usable or "null").encode()]
        if found:
            lengths[at] = np.array([len(piece) for piece in pieces]).reshape(-1, 2)
        yield b"".join(pieces)
    yield b" "  # an empty file cannot be mapped
