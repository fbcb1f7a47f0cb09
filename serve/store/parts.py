"""One immutable piece of a collection's index, and how it is searched under a filter.

A part is either a segment (memory-mapped from disk, perhaps with an approximate index) or a head of recent
vectors in memory. Its rows never change; which of them are dead is a mask that a new `Part` replaces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from serve.store import exact
from serve.store.device import DeviceScan
from serve.store.exact import Positions
from serve.store.protocol import SearchQuery, Strategy, Vectors
from serve.store.records import Records
from serve.store.rows import Keys

Mask = NDArray[np.bool_]

# A scan of the whole part in order is about this much cheaper per row than one that jumps between rows.
_ORDERLY = 4


class Approximate(Protocol):
    """An approximate index over a part's rows.

    Attributes:
        rows_per_neighbour: So many rows are scanned in order in the time of exploring one more neighbour.
    """

    rows_per_neighbour: int

    def least(self, k: int, effort: int | None = None) -> int:
        """Neighbours that a search for `k` explores at least."""

    def search(self, queries: Vectors, k: int, effort: int | None = None) -> tuple[Vectors, Positions, int]:
        """As `exact.scan`, perhaps missing some, and the most rows that a query was compared with."""


class PartPlan(msgspec.Struct, frozen=True):
    """How one part was searched; see `SearchPlan`."""

    strategy: Strategy
    candidates: int
    explored: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of an index.

    Attributes:
        name: Folder of the segment on disk, or None for rows in memory alone.
        keys: (n,) int64, ascending.
        vectors: (n, dim) float32, unit length.
        dead: (n,) True where the item was deleted or replaced, or None if nowhere.
        dead_count: Number of dead rows.
        approximate: An index over all rows, or None.
        device: A copy of the vectors on a GPU that scans them, or None.
        records: Ids, labels and metadata of the rows; None where only the database has them.
        recorded: Number of the last write whose edits the records contain.
    """

    name: str | None
    keys: Keys
    vectors: Vectors
    dead: Mask | None = None
    dead_count: int = 0
    approximate: Approximate | None = None
    device: DeviceScan | None = None
    records: Records | None = None
    recorded: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def live_count(self) -> int:
        """Rows that are not dead."""
        return len(self.keys) - self.dead_count

    def without(self, keys: Keys) -> Part:
        """The part with these keys (ascending) dead, itself where it has none of them."""
        here = positions_of(keys, self.keys)
        if len(here) == 0:
            return self
        dead = np.zeros(len(self.keys), np.bool_) if self.dead is None else self.dead.copy()
        dead[here] = True
        return replace(self, dead=dead, dead_count=int(np.count_nonzero(dead)))

    def edit(self, keys: Keys) -> None:
        """Notes that the label or metadata of those of these keys (ascending) that are here have changed."""
        if self.records is not None:
            self.records.edited.update(self.keys[positions_of(keys, self.keys)].tolist())

    def live_rows(self) -> Positions:
        """Positions of rows that are not dead, ascending."""
        return np.arange(len(self.keys)) if self.dead is None else np.flatnonzero(~self.dead)

    def mask(self, keys: Keys) -> Mask:
        """True at the rows whose keys are among `keys` (ascending)."""
        mask = np.zeros(len(self.keys), np.bool_)
        mask[positions_of(keys, self.keys)] = True
        return mask

    def search(
        self, queries: Vectors, k: int, passing: Mask | None, how: SearchQuery
    ) -> tuple[Vectors, Keys, PartPlan]:
        """As `find`, with the rows' keys (−1 where there are fewer hits) instead of their positions."""
        similarities, rows, plan = self.find(queries, k, passing, how)
        return similarities, np.where(rows < 0, -1, self.keys[rows]), plan

    def find(
        self, queries: Vectors, k: int, passing: Mask | None, how: SearchQuery
    ) -> tuple[Vectors, Positions, PartPlan]:
        """The `k` best rows of each query among the live ones that pass.

        Args:
            queries: (n, dim) float32, unit length.
            k: Number of neighbours.
            passing: (rows,) True where a filter passes; None passes all.
            how: Its `exact` and `effort` say how to search; the rest of it is the caller's business.

        Returns:
            Similarities (n, ≤k) descending, their rows (−1 where there are fewer), and the plan.
        """
        wanted, candidates = self._wanted(passing)
        k = min(k, candidates)
        if k == 0:
            nothing = np.empty((len(queries), 0))
            return nothing.astype(np.float32), nothing.astype(np.int64), PartPlan("empty", 0)
        rate = candidates / len(self.keys)
        # So many that k of them should pass; a filter against the query's surroundings leaves fewer.
        explored = k if wanted is None else min(len(self.keys), int(1.5 * k / rate) + 16)
        examined = 0
        index = None if how.exact else self.approximate
        scanned = min(len(self.keys), _ORDERLY * candidates)
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
        return similarities, rows, PartPlan(strategy, candidates, examined)

    def _wanted(self, passing: Mask | None) -> tuple[Mask | None, int]:
        """Rows that may be hits (None: all), and their number."""
        if passing is None:
            return (None if self.dead is None else ~self.dead), self.live_count
        wanted: Mask = passing if self.dead is None else passing & ~self.dead
        return wanted, int(np.count_nonzero(wanted))

    def _scan(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        if self.device is not None:
            return self.device.scan(queries, min(k, len(self.keys)))
        return exact.scan(queries, self.vectors, k)

    def _subset(self, queries: Vectors, wanted: Mask | None, k: int) -> tuple[Vectors, Positions]:
        if wanted is None:
            return self._scan(queries, k)
        return exact.scan_subset(queries, self.vectors, np.flatnonzero(wanted), k)


def positions_of(some: Keys, among: Keys) -> Positions:
    """Positions in `among` (ascending) of those of `some` (ascending) that are there."""
    if len(among) == 0 or len(some) == 0 or some[-1] < among[0] or some[0] > among[-1]:
        return np.empty(0, np.int64)
    low, high = np.searchsorted(some, [among[0], among[-1] + 1])
    some = some[low:high]
    at: Positions = np.searchsorted(among, some)
    found: Positions = at[among[at] == some]
    return found


def _keep(
    similarities: Vectors, rows: Positions, wanted: Mask, k: int
) -> tuple[Vectors, Positions, Positions]:
    """The first `k` wanted rows of each query, and the queries that have fewer."""
    fits = (rows >= 0) & wanted[rows]
    short = np.flatnonzero(fits.sum(axis=1) < k)
    # A stable sort on "does not fit" moves the fitting ones to the front in their order.
    order = np.argsort(~fits, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1), short
