"""Segments, which hold the rows of a collection's index.

A segment is on disk (memory-mapped, perhaps with an approximate index) or in memory: a memtable of recent
rows. Its rows never change. A mask says which of them are dead; a new `Segment` with another mask replaces
the old one.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.store.ann import flat
from serve.store.ann.approximate import FaissIndex
from serve.store.ann.flat import DeviceScan
from serve.store.items import MOST_NESTED, metadata_of
from serve.store.types import Mask, Positions, RowIds, SearchQuery, Selection, Strategy, Vectors

# Scanning a row costs about this many times less in a scan of the whole segment than in one of chosen rows.
_ORDERLY = 4
# A position takes 8 bytes, a row of a mask 1: positions take no more memory up to one row in 8.
_FEW = 8
_decode = msgspec.json.Decoder(list[list[Any]]).decode


class MemtableRecords:
    """Ids, labels and metadata of a memtable's rows, in their order; `rows` may be longer than the segment.

    Attributes:
        edited: Ids of rows whose label or metadata may have changed since; only ever grows.
    """

    def __init__(self, rows: list[tuple[Any, str | None, str | None]]) -> None:
        self.edited: set[int] = set()
        self.rows = rows

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]]:
        """The id, or id, label and metadata, of each row."""
        found = [self.rows[row] for row in rows.tolist()]
        if ids_only:
            return [[record[0]] for record in found]
        return [[id_, label, metadata_of(metadata)] for id_, label, metadata in found]


class SegmentRecords:
    """As `MemtableRecords`, of a segment on disk, mapped into memory."""

    def __init__(self, text: Path, starts: Path) -> None:
        self.edited: set[int] = set()
        self._starts: NDArray[np.int64] = np.asarray(np.memmap(starts, "<i8", "r"))
        self._ids = self._starts[:-1].reshape(-1, 2)
        with text.open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def take(self, rows: Positions, *, ids_only: bool) -> list[list[Any]] | None:
        """As `MemtableRecords.take`; None where the database has to be asked."""
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


class SegmentPlan(msgspec.Struct, frozen=True):
    """How one segment was searched; see `SearchPlan`."""

    strategy: Strategy
    candidates: int
    explored: int = 0


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A segment as the manifest names it; the fields are called as on disk.

    Attributes:
        name: Its folder.
        rows: Number of rows.
        index: Factory string of its index.
        files: Checksums by file name.
        sequence: LSN of the last write whose edits its records contain.
        effort: How far a search has to look in the graph, as measured when it was built.
    """

    name: str
    rows: int
    index: str
    files: dict[str, str]
    sequence: int = 0
    effort: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of an index.

    Attributes:
        name: Folder of the segment on disk, or None for rows in memory alone.
        row_ids: (n,) int64, ascending.
        vectors: (n, dim) float32, unit length.
        dead: (n,) True where the item was deleted or replaced, or None if nowhere.
        dead_count: Number of dead rows.
        approximate: An index over all rows, or None.
        device: A copy of the vectors on a GPU that scans them, or None.
        records: Ids, labels and metadata of the rows; None if only the database has them.
        entry: The segment as the manifest names it, or None for rows in memory alone.
    """

    name: str | None
    row_ids: RowIds
    vectors: Vectors
    dead: Mask | None = None
    dead_count: int = 0
    approximate: FaissIndex | None = None
    device: DeviceScan | None = None
    records: MemtableRecords | SegmentRecords | None = None
    entry: SegmentEntry | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def live_count(self) -> int:
        """Number of rows that are not dead."""
        return len(self.row_ids) - self.dead_count

    def without(self, row_ids: RowIds) -> Segment:
        """The segment with these rows (ids ascending) dead; the same object if it has none of them."""
        here = positions_of(row_ids, self.row_ids)
        if len(here) == 0:
            return self
        dead = np.zeros(len(self.row_ids), np.bool_) if self.dead is None else self.dead.copy()
        dead[here] = True
        return replace(self, dead=dead, dead_count=int(np.count_nonzero(dead)))

    def edit(self, row_ids: RowIds) -> None:
        """Marks those of these rows (ids ascending) that are here as edited in label or metadata."""
        if self.records is not None:
            self.records.edited.update(self.row_ids[positions_of(row_ids, self.row_ids)].tolist())

    def live_rows(self) -> Positions:
        """Positions of rows that are not dead, ascending."""
        return np.arange(len(self.row_ids)) if self.dead is None else np.flatnonzero(~self.dead)

    def selection(self, row_ids: RowIds) -> Selection:
        """The rows, dead ones too, whose ids are among `row_ids` (ascending)."""
        rows = positions_of(row_ids, self.row_ids)
        if _FEW * len(rows) <= len(self.row_ids):
            return rows
        mask = np.zeros(len(self.row_ids), np.bool_)
        mask[rows] = True
        return mask

    def find(
        self, queries: Vectors, k: int, passing: Selection | None, how: SearchQuery
    ) -> tuple[Vectors, Positions, SegmentPlan]:
        """The `k` best rows of each query among the live ones that pass.

        Args:
            queries: (n, dim) float32, unit length.
            k: Number of neighbours.
            passing: Rows that pass a filter; None for all.
            how: The query; only `exact` and `effort` are read.

        Returns:
            Similarities (n, ≤k) descending, their rows (−1 where there are fewer), and the plan.
        """
        wanted, candidates = self._wanted(passing)
        k = min(k, candidates)
        if k == 0:
            nothing = np.empty((len(queries), 0))
            return nothing.astype(np.float32), nothing.astype(np.int64), SegmentPlan("empty", 0)
        rate = candidates / len(self.row_ids)
        # Enough for k of them to pass, unless fewer pass near the query than elsewhere.
        explored = k if wanted is None else min(len(self.row_ids), int(1.5 * k / rate) + 16)
        examined = 0
        index = None if how.exact else self.approximate
        scanned = min(len(self.row_ids), _ORDERLY * candidates)
        if index is not None and scanned > index.rows_per_neighbour * index.least(explored, how.effort):
            strategy: Strategy = "approximate"
            similarities, rows, examined = index.search(queries, explored, how.effort)
        elif rate * _ORDERLY >= 1:
            strategy = "exact"
            similarities, rows = self._scan(queries, explored)
        else:
            strategy = "exact_subset"
            similarities, rows = self._subset(queries, wanted, k)
            wanted = None
        if wanted is None:
            short = np.flatnonzero(rows[:, -1] < 0)
        else:
            similarities, rows, short = _keep(similarities, rows, wanted, k)
        if len(short):
            if strategy == "approximate":
                strategy = "approximate_then_exact"
            similarities[short], rows[short] = self._subset(queries[short], wanted, k)
        return similarities, rows, SegmentPlan(strategy, candidates, examined)

    def _wanted(self, passing: Selection | None) -> tuple[Selection | None, int]:
        """Rows that may be hits (None: all), and their number."""
        if passing is None:
            return (None if self.dead is None else ~self.dead), self.live_count
        if passing.dtype != np.bool_:
            rows = passing if self.dead is None else passing[~self.dead[passing]]
            return rows, len(rows)
        wanted = passing if self.dead is None else passing & ~self.dead
        return wanted, int(np.count_nonzero(wanted))

    def _scan(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        if self.device is not None:
            return self.device.scan(queries, min(k, len(self.row_ids)))
        return flat.scan(queries, self.vectors, k)

    def _subset(self, queries: Vectors, wanted: Selection | None, k: int) -> tuple[Vectors, Positions]:
        if wanted is None:
            return self._scan(queries, k)
        rows = np.flatnonzero(wanted) if wanted.dtype == np.bool_ else wanted.astype(np.int64, copy=False)
        return flat.scan_subset(queries, self.vectors, rows, k)


def positions_of(some: RowIds, among: RowIds) -> Positions:
    """Positions in `among` of the ids that it shares with `some`; both ascend."""
    if len(among) == 0 or len(some) == 0 or some[-1] < among[0] or some[0] > among[-1]:
        return np.empty(0, np.int64)
    low, high = np.searchsorted(some, [among[0], among[-1] + 1])
    some = some[low:high]
    if among[-1] - among[0] == len(among) - 1:  # without gaps, as an import leaves them
        rows: Positions = some - among[0]
        return rows
    at: Positions = np.searchsorted(among, some)
    found: Positions = at[among[at] == some]
    return found


def _keep(
    similarities: Vectors, rows: Positions, wanted: Selection, k: int
) -> tuple[Vectors, Positions, Positions]:
    """The first `k` wanted rows of each query, and the queries with fewer than `k`."""
    fits = (rows >= 0) & wanted[rows] if wanted.dtype == np.bool_ else np.isin(rows, wanted)
    short = np.flatnonzero(fits.sum(axis=1) < k)
    # A stable sort on "does not fit" moves the fitting ones to the front in their order.
    order = np.argsort(~fits, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1), short
