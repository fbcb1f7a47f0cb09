"""Derives the searchable state from the truth: at start, and whenever the two might have parted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve.store.database import Database
from serve.store.filters import EVERYTHING
from serve.store.index import IndexState
from serve.store.parts import Part
from serve.store.protocol import StoreError
from serve.store.rows import Added, Changes, Keys, edited_after, keys_where, read_rows, sequence

_PAGE = 16_384


def recovered(database: Database, dim: int, segments: Sequence[Part], head_rows: int) -> IndexState:
    """The state that holds exactly the items of the database.

    A row of a segment is alive if and only if the truth has its key and no segment before it does; an item
    whose key no segment has is read from the truth. So no list of deletions has to be kept, and a segment
    that is missing, old, left over beside its successor or from before a restored backup costs time, never an
    item.

    Raises:
        StoreError: The database holds a vector of another length.
    """
    with database.read_transaction() as connection:
        now = sequence(connection)
        live = keys_where(connection, EVERYTHING)
        for segment in segments:
            if segment.records is not None:
                segment.edit(edited_after(connection, segment.recorded))
    uncovered = np.ones(len(live), np.bool_)
    parts: list[Part] = []
    for segment in segments:
        alive = np.isin(segment.keys, live[uncovered], assume_unique=True)
        uncovered[np.searchsorted(live, segment.keys[alive])] = False
        if alive.any():
            parts.append(segment.without(segment.keys[~alive]))
    state = IndexState.empty(dim, now)
    state = IndexState((*parts, state.head), now)
    return _with_missing(state, database, dim, live[uncovered], head_rows)


def _with_missing(
    state: IndexState, database: Database, dim: int, missing: Keys, head_rows: int
) -> IndexState:
    done = 0
    above = int(missing[0]) - 1 if len(missing) else 0
    while done < len(missing):
        with database.read() as connection:
            keys, rows, records = read_rows(connection, above, _PAGE)
        if len(keys) == 0:
            break  # deleted by the process that writes while we only read
        if rows.shape[1] != 4 * dim:
            raise StoreError(f"{database.path} holds vectors of {rows.shape[1] // 4} numbers, not {dim}")
        wanted = np.isin(keys, missing[done:], assume_unique=True)
        vectors = np.ascontiguousarray(rows[wanted]).view("<f4").astype(np.float32, copy=False)
        chosen = [records[row] for row in np.flatnonzero(wanted)]
        added = [Added(keys[wanted], vectors, chosen)]
        state = state.after(Changes(state.sequence, state.sequence, added=added), head_rows)
        above = int(keys[-1])
        done = int(np.searchsorted(missing, above, side="right"))
    return state
