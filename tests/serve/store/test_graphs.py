"""Graphs grow, merge when nobody writes, and look as far as their vectors demand."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.store.ann import flat
from serve.store.ann.approximate import FaissIndex, build, demanded_effort, parse
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item, StoreError

DIM = 24
TUNING = Tuning(memtable_rows=400, approximate_rows=300, build_threads=1)


def draw(count: int, spread: float, seed: int = 0) -> np.ndarray:
    """(count, DIM) unit vectors in clusters of 20; they overlap where the spread is large."""
    centres = np.random.default_rng(9).standard_normal((150, DIM)) / np.sqrt(DIM)
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(150, size=count)]
    rows = (rows + spread / np.sqrt(DIM) * rng.standard_normal((count, DIM))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recall(store: FaissStore, queries: np.ndarray, **options: Any) -> float:
    got = store.search(queries, 10, **options).hits
    right = store.search(queries, 10, where=options.get("where"), exact=True).hits
    pairs = zip(got, right, strict=True)
    return float(np.mean([len({a.id for a in x} & {b.id for b in y}) / 10 for x, y in pairs]))


def test_a_graph_grows_and_is_built_anew_when_too_much_of_it_is_dead(tmp_path: Path) -> None:
    vectors = draw(3000, 0.6)
    with FaissStore.open(tmp_path / "store", dim=DIM, index="HNSW12", tuning=TUNING) as store:
        store.upsert(Item(n, vectors[n]) for n in range(2000))
        store.compact()
        store.delete(range(10))
        store.upsert(Item(n, vectors[n]) for n in range(2000, 3000))
        store.compact()
        # Rows of the grown graph stay where they are, dead ones too.
        assert (store.stats().segments, store.stats().dead) == (1, 10)
        assert recall(store, draw(60, 0.6, seed=1)) >= 0.98
        assert all(hit.id >= 10 for hits in store.search(vectors[:10], 5).hits for hit in hits)
        store.delete(range(1000))
        store.compact()
        assert (store.stats().segments, store.stats().dead) == (1, 0)
        assert recall(store, draw(60, 0.6, seed=2)) >= 0.98
    with FaissStore.open(tmp_path / "store") as store:
        assert (store.stats().segments, store.stats().memtable, store.count()) == (1, 0, 2000)


def test_segments_merge_when_nobody_writes(tmp_path: Path) -> None:
    vectors = draw(2000, 0.6)
    tuning = Tuning(memtable_rows=400, approximate_rows=300, build_threads=1, settle_seconds=0.05)
    with FaissStore.open(tmp_path / "store", dim=DIM, index="HNSW8", tuning=TUNING) as store:
        for start in range(0, 2000, 500):
            store.upsert(Item(n, vectors[n]) for n in range(start, start + 500))
            store.flush()
    with FaissStore.open(tmp_path / "store", tuning=tuning) as store:
        store.upsert([Item("last", vectors[0])])
        until = time.monotonic() + 60
        while store.stats().segments > 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert store.stats().segments == 1
        assert store.count() == 2001
        assert {hit.id for hit in store.search(vectors[0], 2).hits[0]} == {0, "last"}


def test_large_clusters_are_linked_to_each_other(tmp_path: Path) -> None:
    """A graph whose links stay within the clusters finds 0.95 of the neighbours."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 128), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = centres[rng.integers(50, size=20_200)] + 0.053 * rng.standard_normal((20_200, 128), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows, queries = vectors[:20_000], vectors[20_000:]
    assert build("HNSW8", rows, tmp_path / "graph", threads=1, stop=lambda: False)
    found = FaissIndex.load(tmp_path / "graph", "HNSW8", rows).search(queries, 10, 64)[0]
    assert np.mean(found >= flat.scan(queries, rows, 10)[0][:, -1:] - 1e-6) > 0.97


def test_harder_vectors_demand_a_farther_look(tmp_path: Path) -> None:
    efforts = []
    for spread in (0.3, 3.0):
        vectors = draw(4000, spread)
        path = tmp_path / f"{spread}.faiss"
        assert build("HNSW4", vectors, path, threads=1, stop=lambda: False)
        efforts.append(demanded_effort(FaissIndex.load(path, "HNSW4", vectors), vectors))
    assert efforts[0] < efforts[1]


@pytest.mark.parametrize("per_mille", [1000, 500, 100, 10])
def test_filters_keep_recall_on_hard_vectors(tmp_path: Path, per_mille: int) -> None:
    vectors = draw(6000, 2.0)
    buckets = np.random.default_rng(3).permutation(6000) % 1000
    tuning = Tuning(approximate_rows=1000, build_threads=1)
    with FaissStore.open(tmp_path / "store", dim=DIM, index="HNSW12", tuning=tuning) as store:
        store.upsert(Item(n, vectors[n], metadata={"bucket": int(buckets[n])}) for n in range(6000))
        store.compact()
        assert recall(store, draw(100, 2.0, seed=4), where={"metadata.bucket": {"lt": per_mille}}) >= 0.98


def test_the_effort_is_the_requests_before_the_collections(tmp_path: Path) -> None:
    vectors = draw(4000, 3.0)
    queries = draw(80, 3.0, seed=5)
    with FaissStore.open(tmp_path / "store", dim=DIM, index="HNSW4,ef=10", tuning=TUNING) as store:
        store.upsert(Item(n, vectors[n]) for n in range(4000))
        store.compact()
        shallow, deep = recall(store, queries), recall(store, queries, effort=400)
        assert shallow < 0.9 < deep
        files = {path.name for path in (store.place / "segments").iterdir()}
    with FaissStore.open(tmp_path / "store", index="HNSW4,ef=400", tuning=TUNING) as store:
        assert recall(store, queries) == deep
        # Another effort is another way to search and not another index.
        store.flush()
        assert {path.name for path in (store.place / "segments").iterdir()} == files


@pytest.mark.slow
def test_an_inverted_index_takes_its_effort_too(tmp_path: Path) -> None:
    vectors = draw(4000, 3.0)
    queries = draw(80, 3.0, seed=5)
    for index in ("IVF32,Flat,nprobe=1", "IVF32,PQ4,RFlat,nprobe=1", "PCA16,IVF32,Flat,nprobe=1"):
        with FaissStore.open(tmp_path / index, dim=DIM, index=index, tuning=TUNING) as store:
            store.upsert(Item(n, vectors[n]) for n in range(4000))
            store.compact()
            assert recall(store, queries) < recall(store, queries, effort=16)


@pytest.mark.parametrize(
    "index", ["HNSW8,nprobe=3", "IVF4,Flat,ef=3", "Flat,ef=3", "HNSW8,ef=0", "HNSW8,ef=70000", "HNSW8,ef=x"]
)
def test_an_effort_that_the_index_does_not_take_is_refused(tmp_path: Path, index: str) -> None:
    with pytest.raises(StoreError):
        FaissStore.open(tmp_path / "store", dim=DIM, index=index)


def test_the_effort_stands_behind_the_factory_string() -> None:
    assert parse("IVF1024,SQ8,nprobe=32") == ("IVF1024,SQ8", 32)
    assert parse("HNSW32,ef=128") == ("HNSW32", 128)
    assert parse("HNSW32") == ("HNSW32", None)
    assert parse("HNSW32,ef=-1") == ("HNSW32,ef=-1", None)
