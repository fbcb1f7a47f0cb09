"""A damaged truth is refused with the file's name and the remedy, whenever it is met."""

import sqlite3
from pathlib import Path

import pytest

from serve.api.error_responses import problem_of
from serve.settings import Settings
from serve.store.collection import FaissStore
from serve.store.types import Item, StoreDamaged


@pytest.fixture
def database(tmp_path: Path, items: list[Item]) -> Path:
    with FaissStore.open(tmp_path / "store", dim=16) as store:
        store.upsert(items)
        store.purge()  # empties the log too
        return store.place / "items.db"


def damage(file: Path, start: int, length: int) -> None:
    content = bytearray(file.read_bytes())
    content[start : start + length] = bytes(255 - byte for byte in content[start : start + length])
    file.write_bytes(content)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(("start", "length"), [(0, 100), (100, 4000)])
def test_the_start_refuses_it(database: Path, start: int, length: int, read_only: bool) -> None:
    damage(database, start, length)
    with pytest.raises(StoreDamaged, match=r"items\.db is damaged .* backup"):
        FaissStore.open(database.parents[2], read_only=read_only)


def test_a_request_that_meets_it_says_so(database: Path, items: list[Item]) -> None:
    with FaissStore.open(database.parents[2]) as store:
        store.flush()
    damage(database, 8192, database.stat().st_size)  # all but the first page, which says where the others are
    with pytest.raises(StoreDamaged) as met, FaissStore.open(database.parents[2]) as store:
        store.get([item.id for item in items], with_vectors=True)
    assert problem_of(met.value, Settings()).status == 500


def test_other_mistakes_are_not_called_damage(database: Path) -> None:
    with (
        FaissStore.open(database.parents[2]) as store,
        pytest.raises(sqlite3.OperationalError, match="no such table"),
        store._database.read() as connection,
    ):
        connection.execute("SELECT * FROM no_table")
