"""A field's index is used by the database, not only accepted."""

import contextlib
import sqlite3
from pathlib import Path

import numpy as np

from serve.store import filters
from serve.store.collection import FaissStore
from serve.store.types import Item


def test_the_database_uses_a_field_index(tmp_path: Path) -> None:
    where = filters.condition({"metadata.price": {"gte": 3, "lt": 9}})
    with FaissStore.open(tmp_path / "store", dim=4) as store:
        store.upsert(Item(n, np.eye(4)[n % 4], metadata={"price": n}) for n in range(1000))
        store.create_field_index("metadata.price")
        with contextlib.closing(sqlite3.connect(store.place / "items.db")) as connection:
            query = f"EXPLAIN QUERY PLAN SELECT group_concat(key) FROM items WHERE ({where.sql})"
            plan = connection.execute(query, where.parameters).fetchall()
    assert "USING INDEX payload:metadata.price" in str(plan)
