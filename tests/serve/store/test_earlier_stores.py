"""A store that an earlier version wrote opens as it is, with all that is in it.

earlier_store.zip was written before segments, flushes and row ids were called so: collections `exact` (Flat)
and `graph` (HNSW8) of 50 items each, an index on metadata.price and the alias `live`. Then item 7 got another
label, item 8 was deleted, and items 50 to 54 were added, which no segment holds yet.
"""

import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest

from serve.store.catalogue import Catalogue
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import StoreError

TUNING = Tuning(approximate_rows=10, build_threads=1)
IDS = [number for number in range(55) if number != 8]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).with_name("earlier_store.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def label(number: int) -> str:
    if number == 7:
        return "edited"
    return "new" if number >= 50 else "cat" if number % 2 else "dog"


def check(store: FaissStore) -> None:
    assert [
        (item.id, item.label, item.metadata) for item in sorted(store.scan(), key=lambda item: item.id)
    ] == [(number, label(number), {"price": number}) for number in IDS]
    for where, expected in (
        (None, IDS),
        ({"label": "cat"}, [number for number in IDS if label(number) == "cat"]),
        ({"metadata.price": {"gte": 45}}, [number for number in IDS if number >= 45]),
    ):
        for query in store.get([0, 52], with_vectors=True):
            hits = store.search(query.vector, 100, where=where).hits[0]
            assert sorted(hit.id for hit in hits) == expected
            assert {hit.id: (hit.label, hit.metadata) for hit in hits} == {
                number: (label(number), {"price": number}) for number in expected
            }
    assert store.thumbnail(3) == b"image"
    assert store.thumbnail(4) is None


@pytest.mark.parametrize("name", ["exact", "graph"])
def test_it_opens(folder: Path, name: str) -> None:
    with FaissStore.open(folder, collection=name, read_only=True) as store:
        check(store)
    with FaissStore.open(folder, 4, "model-1", collection=name, tuning=TUNING) as store:
        stats = store.stats()
        assert (stats.items, stats.lsn, stats.flushed_lsn, stats.segments, stats.memtable) == (
            54,
            57,
            50,
            1,
            5,
        )
        assert stats.field_indexes == ("label", "metadata.price")
        assert store.index == {"exact": "Flat", "graph": "HNSW8"}[name]
        check(store)
        store.upsert([item for item in store.get([0], with_vectors=True) if item])
        store.flush()
        check(store)
        assert store.stats().lsn == store.stats().flushed_lsn == 58
        store.drop_field_index("metadata.price")
        assert store.stats().field_indexes == ("label",)
    with FaissStore.open(folder, collection=name, tuning=TUNING) as store:
        assert store.stats().memtable == 0
        check(store)


def test_its_segments_are_read_not_built_anew(folder: Path) -> None:
    segments = sorted(folder.glob("collections/*/segments/*/*"))
    before = {path: path.stat().st_mtime_ns for path in segments}
    with Catalogue(folder, tuning=TUNING) as catalogue:
        assert catalogue.aliases() == {"live": "graph"}
        for name in ("exact", "live"):
            assert len(catalogue.collection(name).search(np.ones(4), 100).hits[0]) == 54
    assert {path: path.stat().st_mtime_ns for path in segments} == before


def test_a_collection_that_was_never_finished_is_named(folder: Path) -> None:
    """A crash between schema and definition left such; today a collection is made whole or not at all."""
    database = sqlite3.connect(folder / "collections" / "exact" / "items.db")
    database.execute("DELETE FROM properties WHERE name IN ('dim', 'fingerprint', 'index')")
    database.commit()
    database.close()
    with pytest.raises(StoreError, match="exact was never finished; delete the collection"):
        FaissStore.open(folder, collection="exact")
    with FaissStore.open(folder, 4, "model-1", collection="exact") as store:
        check(store)
