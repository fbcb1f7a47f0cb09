"""The searchable state of a collection: an immutable value that each commit replaces.

Readers take the current state once and work on it undisturbed; the writer builds the next one and swaps it
in. Nothing is locked and nothing that a reader sees ever changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serve.store import exact
from serve.store.parts import Mask, Part, PartPlan
from serve.store.protocol import SearchPlan, SearchQuery, Strategy, Vectors
from serve.store.records import HeadRecords
from serve.store.rows import NO_KEYS, Added, Changes, Keys

# Strategies from the most to the least far-reaching; the plan of a search names the first that any part used.
_ORDER: tuple[Strategy, ...] = ("approximate_then_exact", "approximate", "exact", "exact_subset", "empty")


@dataclass(frozen=True, slots=True)
class IndexState:
    """Parts in the order of their keys; the last one is the head, which grows.

    Attributes:
        parts: Segments and heads. No key is live in two of them.
        sequence: Number of the last write that the state contains.
    """

    parts: tuple[Part, ...]
    sequence: int

    @classmethod
    def empty(cls, dim: int, sequence: int = 0) -> IndexState:
        """A state without items."""
        return cls((_empty_head(dim),), sequence)

    @property
    def head(self) -> Part:
        """The part that grows."""
        return self.parts[-1]

    @property
    def live_count(self) -> int:
        """Number of items."""
        return sum(part.live_count for part in self.parts)

    def after(self, changes: Changes, head_rows: int) -> IndexState:
        """The state that follows a committed transaction."""
        parts = list(self.parts)
        for added in changes.added:
            if len(parts[-1]) >= head_rows:
                parts.append(_empty_head(added.vectors.shape[1]))
            parts[-1] = _extended(parts[-1], added)
        for part in parts if changes.edited else ():
            part.edit(np.unique(changes.edited))
        if changes.removed:
            removed = np.sort(np.concatenate(changes.removed))
            parts = [part.without(removed) for part in parts]
        return IndexState(tuple(parts), changes.sequence)

    def sealed(self) -> IndexState:
        """The state with an empty head, what was in it now a part that no longer grows."""
        if len(self.head) == 0:
            return self
        return replace(self, parts=(*self.parts, _empty_head(self.head.vectors.shape[1])))

    def holds(self, parts: Sequence[Part]) -> bool:
        """Whether these parts of an earlier state are still here; not where the state was derived anew."""
        here = {id(part.keys) for part in self.parts[:-1]}
        return all(id(part.keys) in here for part in parts)

    def replaced(self, old: Sequence[Part], new: Part | None) -> IndexState:
        """The state with some parts merged into one; what died in them meanwhile is dead in it too.

        Args:
            old: Parts of an earlier state that `new` contains the live rows of.
            new: Their successor, None if no row was alive.
        """
        numbers = {id(part.keys) for part in old}
        rest = [part for part in self.parts[:-1] if id(part.keys) not in numbers]
        if new is not None:
            now = [part for part in self.parts[:-1] if id(part.keys) in numbers]
            died = [part.keys[part.dead] for part in now if part.dead is not None]
            rest.append(new.without(np.sort(np.concatenate(died or [NO_KEYS]))))
        return replace(self, parts=(*rest, self.head))

    def search(
        self, queries: Vectors, k: int, masks: Sequence[Mask | None], how: SearchQuery, index: str
    ) -> tuple[Vectors, Keys, SearchPlan]:
        """Searches every part; see `Part.search`. `masks` has one filter mask (or None) for each part."""
        found: list[tuple[Vectors, Keys]] = []
        plans: list[PartPlan] = []
        for part, mask in zip(self.parts, masks, strict=True):
            similarities, keys, part_plan = part.search(queries, k, mask, how)
            found.append((similarities, keys))
            plans.append(part_plan)
        similarities, keys = exact.merge(found, min(k, sum(plan.candidates for plan in plans)))
        return similarities, keys, self.plan(plans, index)

    def plan(self, plans: Sequence[PartPlan], index: str) -> SearchPlan:
        """The plan of a search from those of all parts."""
        if len(plans) == 1:
            (only,) = plans
            selectivity = only.candidates / max(1, self.live_count)
            return SearchPlan(only.strategy, only.candidates, selectivity, index, only.explored)
        candidates = sum(plan.candidates for plan in plans)
        return SearchPlan(
            strategy=min((plan.strategy for plan in plans), key=_ORDER.index, default="empty"),
            candidates=candidates,
            selectivity=candidates / max(1, self.live_count),
            index=index,
            explored=sum(plan.explored for plan in plans),
        )

    def records(self, keys: Keys, *, ids_only: bool) -> tuple[dict[int, list[Any]], list[int]]:
        """What the parts know of items with these keys; negative numbers mark missing ones.

        Returns:
            By key, lists of the id, or of id, label and metadata; and the keys to ask the database for.
        """
        wanted = keys.ravel() if len(keys) == 1 else np.unique(keys)
        found: dict[int, list[Any]] = {}
        others: list[int] = []
        for part in self.parts:
            if len(part) == 0:
                continue
            at = part.keys.searchsorted(wanted)
            at[at == len(part)] = 0
            here = part.keys[at] == wanted
            numbers = wanted[here].tolist()
            rows = None if part.records is None else part.records.take(at[here], ids_only=ids_only)
            if part.records is None or rows is None:
                others += numbers
            elif numbers:
                found.update(zip(numbers, rows, strict=True))
                if not part.records.edited.isdisjoint(numbers) and not ids_only:
                    others += part.records.edited.intersection(numbers)
        return found, others


def _empty_head(dim: int) -> Part:
    return Part(None, NO_KEYS, np.empty((0, dim), np.float32), records=HeadRecords([]))


def _extended(head: Part, added: Added) -> Part:
    """The head with rows appended, in the room behind it when there is some.

    The arrays of a head are views of the front of larger buffers. Rows behind the view are seen by no state
    but the newest, so they may be written without touching what readers hold.
    """
    keys, vectors = added.keys, added.vectors
    old, new = len(head), len(head) + len(keys)
    key_room, vector_room = head.keys.base, head.vectors.base
    if key_room is None or vector_room is None or len(key_room) < new or len(vector_room) < new:
        capacity = max(1024, 2 * new)
        key_room = np.empty(capacity, np.int64)
        vector_room = np.empty((capacity, vectors.shape[1]), np.float32)
        key_room[:old] = head.keys
        vector_room[:old] = head.vectors
    key_room[old:new] = keys
    vector_room[old:new] = vectors
    dead = None if head.dead is None else np.concatenate([head.dead, np.zeros(len(keys), np.bool_)])
    if isinstance(head.records, HeadRecords):
        head.records.rows[old:] = added.records
    return replace(head, keys=key_room[:new], vectors=vector_room[:new], dead=dead)
