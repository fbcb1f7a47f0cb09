"""What hits say of themselves comes from the segments' own records, and is what the database says."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.manifest import _checksum
from serve.store.types import Item

DIM = 8
SMALL = Tuning(memtable_rows=6, transaction_rows=8, build_threads=1, approximate_rows=10)
IDS = st.sampled_from([*range(12), *(f"id {n}" for n in range(12)), 2**62, 'ä"\\\n', "7"])
LABELS = st.none() | st.sampled_from(["a", "ü\"'", ""])
METADATA = st.dictionaries(
    st.sampled_from(["x", "y z"]), st.none() | st.integers(-5, 5) | st.text(max_size=3)
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.lists(st.tuples(IDS, LABELS, METADATA), min_size=1, max_size=9)),
        st.tuples(st.just("update"), IDS, LABELS),
        st.tuples(st.just("delete"), st.lists(IDS, max_size=4)),
        st.tuples(st.sampled_from(["flush", "compact", "purge", "reopen"])),
    ),
    max_size=14,
)


def found(store: FaissStore) -> dict[Any, tuple[Any, Any]]:
    """Id, label and metadata of all items, as an exact search returns them; ids alone must agree."""
    query = np.ones(DIM, np.float32)
    hits = store.search(query, 100, exact=True).hits[0]
    assert [hit.id for hit in store.search(query, 100, exact=True, with_metadata=False).hits[0]] == [
        hit.id for hit in hits
    ]
    several = store.search(np.stack([query, -query]), 100, exact=True).hits
    assert several[0] == hits
    assert {hit.id for hit in several[1]} == {hit.id for hit in hits}
    return {hit.id: (hit.label, hit.metadata) for hit in hits}


@pytest.mark.parametrize("index", ["Flat", "HNSW8"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, seed=st.integers(0, 99))
def test_hits_say_what_the_last_write_said(
    tmp_path_factory: pytest.TempPathFactory, index: str, operations: list[Any], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("records")
    rng = np.random.default_rng(seed)
    store = FaissStore.open(folder, dim=DIM, index=index, tuning=SMALL)
    model: dict[Any, tuple[Any, Any]] = {}
    for name, *arguments in operations:
        if name == "upsert":
            store.upsert([Item(i, rng.standard_normal(DIM), label, data) for i, label, data in arguments[0]])
            model |= {i: (label, data) for i, label, data in arguments[0]}
        elif name == "update" and arguments[0] in model:
            store.update(arguments[0], {"label": arguments[1]})
            model[arguments[0]] = (arguments[1], model[arguments[0]][1])
        elif name == "delete":
            store.delete(arguments[0])
            model = {i: row for i, row in model.items() if i not in arguments[0]}
        elif name == "reopen":
            store.close()
            store = FaissStore.open(folder, tuning=SMALL)
        elif name != "update":
            getattr(store, name)()
        assert found(store) == model
    store.close()


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[[], FaissStore]:
    return lambda: FaissStore.open(tmp_path / "store", dim=DIM, tuning=SMALL)


def test_an_edit_outlives_the_restart_and_the_next_segment(open_store: Callable[[], FaissStore]) -> None:
    rng = np.random.default_rng(0)
    with open_store() as store:
        store.upsert([Item(n, rng.standard_normal(DIM), "before", {"n": n}) for n in range(20)])
        store.compact()
        store.update(3, {"label": "after", "metadata": {"n": None, "m": 1}})
        assert found(store)[3] == ("after", {"m": 1})
    with open_store() as store:
        assert found(store)[3] == ("after", {"m": 1})
        store.update(4, {"label": None})
        store.purge()  # nothing of what was edited may stay in the files
        place = store.place
        assert sum(file.read_bytes().count(b"before") for file in place.rglob("records.json")) == 18
        assert (found(store)[3], found(store)[4]) == (("after", {"m": 1}), (None, {"n": 4}))


def test_a_restored_older_database_wins_over_newer_labels(
    open_store: Callable[[], FaissStore], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    with open_store() as store:
        store.upsert([Item(n, rng.standard_normal(DIM), "old") for n in range(20)])
        store.flush()
        place = store.place
    backup = (place / "items.db").read_bytes()
    with open_store() as store:
        store.update(3, {"label": "new"})
        store.purge()
        assert found(store)[3][0] == "new"
    for file in place.glob("items.db*"):
        file.unlink()
    (place / "items.db").write_bytes(backup)
    with open_store() as store:
        assert found(store)[3][0] == "old"


def test_a_store_from_before_records_gets_them(open_store: Callable[[], FaissStore]) -> None:
    rng = np.random.default_rng(0)
    with open_store() as store:
        store.upsert([Item(n, rng.standard_normal(DIM), f"label {n}") for n in range(20)])
        store.flush()
        place, expected = store.place, found(store)
    database = sqlite3.connect(place / "items.db")
    with database:
        database.execute("DROP TABLE edits")
        database.execute("UPDATE properties SET value = 1 WHERE name = 'format'")
    database.close()
    manifest = place / "manifest.json"
    body = json.loads(manifest.read_text())["body"]
    for segment in body["segments"]:
        del segment["effort"], segment["sequence"]
        for name in ("records.json", "records.i64"):
            del segment["files"][name]
            (place / "segments" / segment["name"] / name).unlink()
    manifest.write_text(json.dumps({"checksum": _checksum(body), "body": body}))
    with open_store() as store:
        assert found(store) == expected
        store.update(3, {"label": "new"})
        store.flush()
        assert list(place.rglob("records.json"))
        assert found(store) == expected | {3: ("new", {})}
