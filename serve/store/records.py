"""Ids, labels and metadata of an index part's rows, without a question to the database.

A search ends with reading the rows of its hits. From SQLite that costs as much as the search of a graph, so
each segment keeps a copy of what it needs, and the newest rows are in memory anyway:

    records.json    of each row its id, label and metadata, as JSON separated by commas
    records.i64     where in it each row's id begins and ends, two numbers a row, and its length

Labels and metadata can be edited while a row stays. The keys of edited rows are remembered (in the database
too, with the number of the write), and those are read from the database until the segment is written anew.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.store.database import Database
from serve.store.files import write_synced
from serve.store.rows import MOST_NESTED, Keys, metadata_of

TEXT = "records.json"
STARTS = "records.i64"

# Rows that one statement joins into a JSON text; decoding it holds the interpreter's lock for a millisecond.
_ROWS = 2048
Positions = NDArray[np.int64]
_Row = tuple[int, msgspec.Raw, msgspec.Raw, str | None]
_decode_rows = msgspec.json.Decoder(list[_Row]).decode
_decode = msgspec.json.Decoder(list[list[Any]]).decode


class Records(Protocol):
    """What is known of the rows of one part."""

    edited: set[int]
    """Keys whose label or metadata may have changed since; grows only."""

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]] | None:
        """Of each row the id, or the id, label and metadata; None where only the database can say it."""


class HeadRecords:
    """Records in memory, in the order of the rows; `rows` may go on behind the part's own."""

    def __init__(self, rows: list[tuple[Any, str | None, str | None]]) -> None:
        self.edited: set[int] = set()
        self.rows = rows

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]]:
        """See `Records.take`."""
        found = [self.rows[row] for row in rows.tolist()]
        if ids_only:
            return [[record[0]] for record in found]
        return [[id_, label, metadata_of(metadata)] for id_, label, metadata in found]


class SegmentRecords:
    """Records of a segment's folder, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.edited: set[int] = set()
        self._starts: NDArray[np.int64] = np.asarray(np.memmap(folder / STARTS, "<i8", "r"))
        self._ids = self._starts[:-1].reshape(-1, 2)
        with (folder / TEXT).open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]] | None:
        """See `Records.take`."""
        text = self._text
        if ids_only:
            pieces = [text[start:end] for start, end in self._ids[rows].tolist()]
        else:
            starts, ends = self._starts[2 * rows].tolist(), self._starts[2 * rows + 2].tolist()
            pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
            # Earlier versions stored metadata too deep to be answered; the database's reader handles it.
            if any(piece.count(b"{") + piece.count(b"[") > MOST_NESTED for piece in pieces):
                return None
        return _decode(b"[[" + b"],[".join(pieces) + b"]]")


def write_records(database: Database, keys: Keys, folder: Path) -> dict[str, str]:
    """Writes the records of rows with these keys (ascending), and waits until the disk has them.

    Args:
        database: Where they are read; an item that is gone there gets an empty record.
        keys: (n,) int64, ascending, at least one.
        folder: The segment's.

    Returns:
        Checksums by file name.
    """
    lengths = np.zeros((len(keys), 2), np.int64)
    files = {TEXT: write_synced(folder / TEXT, _texts(database, keys, lengths))}
    starts = np.concatenate([[0], np.cumsum(lengths.ravel())])
    files[STARTS] = write_synced(folder / STARTS, [starts.astype("<i8").tobytes()])
    return files


def _texts(database: Database, keys: Keys, lengths: NDArray[np.int64]) -> Iterator[bytes]:
    for start in range(0, len(keys), _ROWS):
        chunk = keys[start : start + _ROWS]
        with database.read() as connection:
            text = connection.execute(
                "SELECT json_group_array(json_array(key, id, label, metadata)) FROM "
                "(SELECT * FROM items WHERE key BETWEEN ? AND ? ORDER BY key)",
                (int(chunk[0]), int(chunk[-1])),
            ).fetchone()[0]
        pieces = []
        mine = set(chunk.tolist())
        found = [row for row in _decode_rows(text) if row[0] in mine]
        at = start + np.searchsorted(chunk, [row[0] for row in found])
        for _, id_, label, metadata in found:
            # What cannot be used is left out, or it would keep the segment from ever being written.
            usable = metadata if metadata_of(metadata) else None
            pieces += [bytes(id_), b"," + bytes(label) + b"," + (usable or "null").encode()]
        if found:
            lengths[at] = np.array([len(piece) for piece in pieces]).reshape(-1, 2)
        yield b"".join(pieces)
    yield b" "  # a file of nothing could not be mapped
