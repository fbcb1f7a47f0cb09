"""Which rows of the index pass a filter, remembered between searches.

SQL answers a filter with the keys that pass. They are kept per filter, and brought up to date by asking for
keys above the last ones only: a key never changes its vector, a dead one is masked by the index itself, and
an edit of labels or metadata forgets everything.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from serve.store.filters import EVERYTHING, Condition
from serve.store.index import IndexState
from serve.store.parts import Mask
from serve.store.rows import NO_KEYS, Keys, keys_where, sequence

_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Entry:
    """Keys that passed when the last write was number `sequence`, and their masks over segments."""

    keys: Keys
    sequence: int
    masks: dict[str, Mask]

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + sum(mask.nbytes for mask in self.masks.values())


class Candidates:
    """Filter masks of one collection.

    Args:
        alone: Whether no other process writes to it; nothing is worth remembering where one does.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._entries: OrderedDict[Condition, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._edited = 0

    def forget(self, number: int) -> None:
        """Labels or metadata were edited, last by the write of that number: what passed may pass no longer.

        Searches may still be at an earlier write; what they find out then is not remembered.
        """
        with self._lock:
            self._edited = number
            self._entries.clear()

    def masks(
        self, condition: Condition, state: IndexState, connect: Callable[[], sqlite3.Connection]
    ) -> list[Mask | None]:
        """For each part of the state, which rows pass; None means all.

        Args:
            condition: The filter.
            state: What is searched.
            connect: Gives a connection to the database as it was at that state; asked for only where what is
                remembered is older.
        """
        if condition == EVERYTHING:
            return [None] * len(state.parts)
        with self._lock:
            entry = self._entries.get(condition)
        if entry is None or entry.sequence > state.sequence:
            entry = _Entry(NO_KEYS, -1, {})
        if entry.sequence != state.sequence:
            entry = _extended(entry, condition, connect())
        named = {
            part.name: entry.masks[part.name] if part.name in entry.masks else part.mask(entry.keys)
            for part in state.parts
            if part.name is not None
        }
        self._remember(condition, replace(entry, masks=named))
        return [part.mask(entry.keys) if part.name is None else named[part.name] for part in state.parts]

    def _remember(self, condition: Condition, entry: _Entry) -> None:
        with self._lock:
            if entry.sequence < self._edited or not self._alone:
                return
            self._entries[condition] = entry
            self._entries.move_to_end(condition)
            used = sum(kept.bytes for kept in self._entries.values())
            while used > _MOST_BYTES:
                used -= self._entries.popitem(last=False)[1].bytes


def _extended(entry: _Entry, condition: Condition, connection: sqlite3.Connection) -> _Entry:
    fresh = keys_where(connection, condition, above=entry.sequence if entry.sequence >= 0 else None)
    return replace(entry, keys=np.concatenate([entry.keys, fresh]), sequence=sequence(connection))
