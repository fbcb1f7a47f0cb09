"""Reads rows in the order of their write, a bounded number at a time.

Milvus answers a query in an order of its own and with at most 16,384 rows. Rows are therefore asked for by
windows of write numbers: as many numbers as rows are wanted where numbers are dense, more where few rows
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from serve.store.milvus.engine import Engine
from serve.store.milvus.expressions import all_of, keys_in
from serve.store.milvus.records import Row
from serve.store.protocol import ItemId

MOST_ROWS = 16_384
"""Most rows that Milvus returns for one query or search."""

_IDS_A_QUERY = 1_000
_NUMBERS_A_QUERY = 10_000


class Reading:
    """Reads one collection.

    Args:
        engine: The connection.
        inside: Milvus's name of the collection.
        last: Tells the number of the last write.
    """

    def __init__(self, engine: Engine, inside: str, last: Callable[[], int]) -> None:
        self._engine = engine
        self._inside = inside
        self._last = last

    def by_id(self, ids: Sequence[ItemId], fields: Sequence[str]) -> dict[str, Row]:
        """Rows of those ids that exist, by key."""
        found: dict[str, Row] = {}
        for start in range(0, len(ids), _IDS_A_QUERY):
            asked = keys_in(ids[start : start + _IDS_A_QUERY])
            rows = self._query(asked, [*fields, "id"])
            found.update({row["id"]: row for row in rows})
        return found

    def count(self, condition: str) -> int:
        """Number of rows that pass."""
        answer = self._engine.call("query", self._inside, filter=condition, output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    def after(self, number: int, limit: int, condition: str, fields: Sequence[str]) -> list[Row]:
        """The first `limit` rows written after `number`, ascending; `sequence` is among their fields.

        Rows that share the last one's number come as well, so that the next read may start behind it.
        """
        found: list[Row] = []
        low, last, width = number, self._last(), limit
        while low < last and len(found) < limit:
            high = min(low + width, last)
            window = f"sequence > {low} and sequence <= {high}"
            rows = self._query(all_of(window, condition), [*fields, "id", "sequence"], MOST_ROWS)
            if len(rows) == MOST_ROWS and high > low + 1:
                width = max(1, (high - low) // 2)
                continue
            rows.sort(key=lambda row: (row["sequence"], row["id"]))
            found += _first(rows, limit - len(found))
            low = high
            if len(rows) < limit // 4 + 1:
                width *= 4
        return found

    def numbered(self, numbers: Sequence[int], fields: Sequence[str]) -> list[Row]:
        """Rows whose last write has one of these numbers, in any order; `sequence` is among their fields."""
        found: list[Row] = []
        for start in range(0, len(numbers), _NUMBERS_A_QUERY):
            listed = ", ".join(map(str, numbers[start : start + _NUMBERS_A_QUERY]))
            found += self._query(f"sequence in [{listed}]", [*fields, "id", "sequence"])
        return found

    def everything(self, condition: str, fields: Sequence[str]) -> list[Row]:
        """All rows that pass, in any order."""
        if self._engine.embedded:  # it knows no limit, and reads every row for each window
            return self._query(condition, [*fields, "id"])
        return [row for page in self.pages(condition, fields) for row in page]

    def pages(self, condition: str, fields: Sequence[str], size: int = 1_000) -> Iterator[list[Row]]:
        """All rows that pass, in pages."""
        rows = self.after(0, size, condition, fields)
        while rows:
            yield rows
            if len(rows) < size:
                return
            rows = self.after(rows[-1]["sequence"], size, condition, fields)

    def _query(self, condition: str, fields: Sequence[str], limit: int | None = None) -> list[Row]:
        options = {} if limit is None else {"limit": limit}
        return list(
            self._engine.call("query", self._inside, filter=condition, output_fields=list(fields), **options)
        )


def _first(rows: list[Row], count: int) -> list[Row]:
    if len(rows) <= count:
        return rows
    end = count
    while end < len(rows) and rows[end]["sequence"] == rows[count - 1]["sequence"]:
        end += 1
    return rows[:end]
