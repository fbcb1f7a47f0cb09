"""Numbers of writes: each stored item carries the number of the write that stored it, in ascending order.

Milvus has no such counter. Ours continues from the highest number in the collection; before each write to a
server it looks whether other processes have gone further. Two that write at the very same moment may take the
same number, which readers expect.
"""

from __future__ import annotations

from serve.store.milvus.engine import Engine


class WriteNumbers:
    """Counts the writes of one collection. Not thread-safe: the store calls it under its lock for writes."""

    def __init__(self, engine: Engine, inside: str) -> None:
        self._engine = engine
        self._inside = inside
        self._last: int | None = None

    def last(self) -> int:
        """Number of the last write that this process knows of or can see."""
        if self._last is None:
            # Numbers are distinct, so the highest is at least the number of items.
            self._last = self._highest(int(self._count()))
        elif not self._engine.embedded:
            self._last = self._highest(self._last)
        return self._last

    def take(self, count: int) -> int:
        """Reserves `count` numbers in a row; returns the first."""
        first = self.last() + 1
        self._last = first + count - 1
        return first

    def _highest(self, low: int) -> int:
        """The highest number in the collection, or `low` where none is above it."""
        step = 1
        while self._any_above(low + step - 1):
            low, step = low + step, 2 * step
        # Nothing is above low + step - 1; `low` itself is taken or was given.
        high = low + step - 1
        while low < high:
            middle = (low + high) // 2
            if self._any_above(middle):
                low = middle + 1
            else:
                high = middle
        return low

    def _any_above(self, bound: int) -> bool:
        found = self._engine.call(
            "query", self._inside, filter=f"sequence > {bound}", output_fields=["id"], limit=1
        )
        return len(found) > 0

    def _count(self) -> int:
        return int(
            self._engine.call("query", self._inside, filter="", output_fields=["count(*)"])[0]["count(*)"]
        )
