"""Filters compare values within their type, whatever JSON the metadata holds; fields' indexes."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve.store import filters
from serve.store.collection import FaissStore
from serve.store.items import metadata_text
from serve.store.rows import row_ids_where
from serve.store.types import Item

SHORT = st.text(st.sampled_from('a5[]{"}:,\\u0 \0'), max_size=4)
TEXT = SHORT | st.sampled_from(["[5]", '{"a":1}', "[]", "5", "\\u0000", "true", "\U0010ffff"])
NUMBER = st.integers(-3, 6) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
PLAIN = st.none() | TEXT | NUMBER
VALUE = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=2), max_leaves=5
)
OPERAND = TEXT.filter(lambda text: "\0" not in text) | NUMBER
CONDITION = st.one_of(
    st.tuples(st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte", "contains"]), OPERAND),
    st.tuples(st.just("in"), st.lists(OPERAND, max_size=3)),
    st.tuples(st.just("prefix"), TEXT.filter(lambda text: "\0" not in text)),
    st.tuples(st.just("exists"), st.booleans()),
)


def comparable(value: Any, operand: Any) -> bool:
    if isinstance(operand, str):
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, int | float)


def holds(value: Any, operator: str, operand: Any) -> bool:
    if operator == "exists":
        return (value is not None) == operand
    if operator == "ne":
        return not holds(value, "eq", operand)
    if operator == "in":
        return any(holds(value, "eq", one) for one in operand)
    if operator == "contains":
        return isinstance(value, list) and any(holds(one, "eq", operand) for one in value)
    if not comparable(value, operand):
        return False
    if operator == "prefix":
        return value.startswith(operand)
    return {
        "eq": value == operand,
        "gt": value > operand,
        "gte": value >= operand,
        "lt": value < operand,
        "lte": value <= operand,
    }[operator]


@settings(max_examples=400, deadline=None)
@given(st.lists(VALUE, min_size=1, max_size=5), CONDITION, st.booleans())
@example([[5]], ("eq", "[5]"), False)
@example([{"a": 1}], ("gte", "a"), False)
@example(["red"], ("contains", "red"), False)
@example([["[5]", [5]]], ("contains", "[5]"), False)
@example(["a\0b", ["a\0b"]], ("eq", "a"), True)
@example([["a\0b"], ["a\\u0000b"]], ("contains", "a\\u0000b"), True)
def test_a_filter_passes_what_plain_python_passes(
    values: list[Any], condition: tuple[str, Any], negate: bool
) -> None:
    operator, operand = condition
    where: dict[str, Any] = {'metadata."it\'s x"': {operator: operand}}
    where = {"not": where} if negate else where
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE items (key INTEGER PRIMARY KEY, id, label, metadata TEXT)")
    rows = [(key, key, None, metadata_text({"it's x": value})) for key, value in enumerate(values)]
    connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    passing = row_ids_where(connection, filters.condition(where)).tolist()
    connection.close()
    assert passing == [key for key, value in enumerate(values) if holds(value, operator, operand) != negate]


def test_a_delete_by_filter_takes_only_what_passes(tmp_path: Path) -> None:
    values: list[Any] = [[5], "[5]", {"a": 1}, '{"a":1}', "a\0b", "a", "red", ["red"]]
    with FaissStore.open(tmp_path / "store", dim=8) as store:
        store.upsert(Item(n, np.eye(8)[n], metadata={"x": value}) for n, value in enumerate(values))
        for operand in ("[5]", '{"a":1}', "a"):
            assert store.delete(where={"metadata.x": operand}) == 1
        assert store.delete(where={"metadata.x": {"contains": "red"}}) == 1
        assert [item.id for item in store.scan()] == [0, 2, 4, 6]


def test_the_database_uses_a_field_index(tmp_path: Path) -> None:
    where = filters.condition({"metadata.price": {"gte": 3, "lt": 9}})
    with FaissStore.open(tmp_path / "store", dim=4) as store:
        store.upsert(Item(n, np.eye(4)[n % 4], metadata={"price": n}) for n in range(1000))
        store.create_field_index("metadata.price")
        with contextlib.closing(sqlite3.connect(store.place / "items.db")) as connection:
            query = f"EXPLAIN QUERY PLAN SELECT group_concat(key) FROM items WHERE ({where.sql})"
            plan = connection.execute(query, where.parameters).fetchall()
    assert "USING INDEX payload:metadata.price" in str(plan)
