"""The derived index on disk: written whole, checked when read, rebuilt from the truth when it is wrong."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item

TUNING = Tuning(memtable_rows=50, build_threads=1, approximate_rows=60)


@pytest.fixture(params=["Flat", "HNSW8", "IVF2,SQ8"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., FaissStore]:
    def open_(**options: object) -> FaissStore:
        return FaissStore.open(
            tmp_path / "store", **{"dim": 16, "index": request.param, "tuning": TUNING, **options}
        )

    return open_


def folder(store: FaissStore) -> Path:
    return store.place


def check(store: FaissStore, items: list[Item], brute_force: Callable) -> None:
    assert {item.id for item in store.scan()} == {item.id for item in items}
    queries = np.random.default_rng(5).standard_normal((9, 16)).astype(np.float32)
    expected = brute_force(items, queries, 7)
    for exact in (True, False):
        result = store.search(queries, 7, exact=exact)
        got = [[hit.id for hit in hits] for hits in result.hits]
        if exact or result.plan.strategy == "exact":
            assert got == [[id_ for id_, _ in hits] for hits in expected]
        else:
            right = [{id_ for id_, _ in hits} for hits in expected]
            found = sum(len(set(a) & b) for a, b in zip(got, right, strict=True))
            assert found >= 0.9 * 63


def test_a_start_from_segments_reads_no_vector_from_the_database(
    open_store: Callable[..., FaissStore], items: list[Item], brute_force: Callable
) -> None:
    with open_store() as store:
        store.upsert(items)
        store.delete([1, 3])
        store.flush()
        stats = store.stats()
        assert (stats.memtable, stats.segments, stats.flushed_lsn) == (0, 1, stats.lsn)
    with open_store() as store:
        again = store.stats()
        assert (again.memtable, again.segments, again.items) == (0, 1, 198)
        check(store, [item for item in items if item.id not in (1, 3)], brute_force)


def test_writes_after_a_flush_are_replayed(
    open_store: Callable[..., FaissStore], items: list[Item], brute_force: Callable
) -> None:
    with open_store(tuning=Tuning(memtable_rows=500, build_threads=1)) as store:
        store.upsert(items[:150])
        store.flush()
        store.delete([item.id for item in items[:10]])
        store.upsert(items[150:])
        store.upsert([Item(items[20].id, items[0].vector)])
    with open_store(tuning=Tuning(memtable_rows=500, build_threads=1)) as store:
        assert store.stats().memtable == 51
        assert store.stats().dead == 11
        check(store, [*items[10:20], Item(items[20].id, items[0].vector), *items[21:]], brute_force)


@pytest.mark.parametrize("name", ["keys.i64", "vectors.f32", "index.faiss", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_noticed_and_repaired(
    open_store: Callable[..., FaissStore],
    items: list[Item],
    brute_force: Callable,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    with open_store() as store:
        store.upsert(items)
        store.flush()
        files = list(folder(store).rglob(name))
        if not files:
            pytest.skip("an exact store has no approximate index")
    content = bytearray(files[0].read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    files[0].write_bytes(content[: len(content) // 2 if damage == "cut" else None])
    if damage == "delete":
        files[0].unlink()
    with caplog.at_level(logging.WARNING), open_store() as store:
        check(store, items, brute_force)
        store.flush()
    assert caplog.records or (name, damage) == ("manifest.json", "delete")
    with open_store() as store:
        assert store.stats().memtable == 0
        check(store, items, brute_force)


def test_a_restored_older_database_wins_over_a_newer_index(
    open_store: Callable[..., FaissStore], items: list[Item], brute_force: Callable, tmp_path: Path
) -> None:
    with open_store() as store:
        store.upsert(items[:120])
        place = folder(store)
    shutil.copytree(place, tmp_path / "backup")
    with open_store() as store:
        store.delete([item.id for item in items[:100]])
        store.upsert(items[100:])
        store.flush()
    for file in place.glob("items.db*"):
        file.unlink()
    for file in (tmp_path / "backup").glob("items.db*"):
        shutil.copy(file, place)
    with open_store() as store:
        check(store, items[:120], brute_force)
        # LSNs that the newer segments used come again, for other vectors.
        store.upsert(items[150:])
        check(store, [*items[:120], *items[150:]], brute_force)
    with open_store() as store:
        check(store, [*items[:120], *items[150:]], brute_force)


def test_another_stores_segments_are_not_taken(
    open_store: Callable[..., FaissStore], items: list[Item], brute_force: Callable, tmp_path: Path
) -> None:
    with open_store() as store:
        store.upsert(items)
        store.flush()
        place = folder(store)
    with FaissStore.open(tmp_path / "other", dim=16) as other:
        other.upsert([Item(n, -np.asarray(item.vector)) for n, item in enumerate(items)])
        other.flush()
        source = folder(other)
    shutil.rmtree(place / "segments")
    shutil.copytree(source / "segments", place / "segments")
    shutil.copy(source / "manifest.json", place)
    with open_store() as store:
        check(store, items, brute_force)


def test_left_over_segments_are_swept_away(open_store: Callable[..., FaissStore], items: list[Item]) -> None:
    with open_store() as store:
        store.upsert(items)
        store.flush()
        left = folder(store) / "segments" / "half-written"
    left.mkdir()
    (left / "vectors.f32").write_bytes(b"x")
    with open_store() as store:
        assert not left.exists()
        body = json.loads((folder(store) / "manifest.json").read_text())["body"]
        names = {path.name for path in (folder(store) / "segments").iterdir()}
        assert names == {segment["name"] for segment in body["segments"]}


def test_another_index_is_built_on_reopening(
    items: list[Item], brute_force: Callable, tmp_path: Path
) -> None:
    for index, files in (("Flat", 0), ("HNSW8", 1), ("IVF2,Flat", 1), ("Flat", 0)):
        with FaissStore.open(tmp_path / "store", dim=16, index=index, tuning=TUNING) as store:
            if store.count() == 0:
                store.upsert(items)
            store.flush()
            assert store.stats().index == index
            assert len(list(folder(store).rglob("index.faiss"))) == files
            check(store, items, brute_force)
    with FaissStore.open(tmp_path / "store") as store:
        assert store.index == "Flat"
