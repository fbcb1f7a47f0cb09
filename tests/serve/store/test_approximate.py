"""Approximate indexes: the parts of the contract that hold only nearly, and those that hold exactly."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.store.ann import flat
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.segment import Segment
from serve.store.types import Item, SearchQuery

DIM = 32
ROWS = 14_000


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((ROWS // 20, DIM))
    return (centres[rng.integers(len(centres), size=count)] + 0.6 * rng.standard_normal((count, DIM))).astype(
        "f4"
    )


@pytest.fixture(scope="module", params=["HNSW16", "IVF32,SQ8"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaissStore]:
    """14,000 items, `bucket` uniform in 0..999; some were replaced or deleted after the flush."""
    rng = np.random.default_rng(1)
    vectors, buckets = clustered(rng, ROWS), rng.permutation(ROWS) % 1000
    folder = tmp_path_factory.mktemp("approximate") / "store"
    with FaissStore.open(folder, dim=DIM, index=request.param, tuning=Tuning(approximate_rows=1000)) as store:
        store.upsert(Item(n, vectors[n], metadata={"bucket": int(buckets[n])}) for n in range(ROWS))
        store.flush()
        store.delete(range(0, ROWS, 50))
        store.upsert(Item(n, vectors[n], metadata={"bucket": int(buckets[n])}) for n in range(1, ROWS, 60))
        yield store


def recall(store: FaissStore, queries: np.ndarray, where: dict | None) -> float:
    found = store.search(queries, 10, where=where).hits
    right = store.search(queries, 10, where=where, exact=True).hits
    return np.mean(
        [len({a.id for a in x} & {b.id for b in y}) / len(y) for x, y in zip(found, right, strict=True)]
    )


@pytest.mark.parametrize("per_mille", [1000, 500, 100, 10, 1])
def test_a_filter_does_not_cost_recall(store: FaissStore, per_mille: int) -> None:
    queries = clustered(np.random.default_rng(2), 100)
    where = {"metadata.bucket": {"lt": per_mille}}
    least = 0.98 if store.index.startswith("HNSW") else 0.9
    assert recall(store, queries, where) >= least
    plan = store.search(queries, 10, where=where).plan
    assert plan.strategy == ("approximate" if per_mille >= 500 else "exact_subset")
    assert plan.selectivity == pytest.approx(per_mille / 1000, rel=0.2)


def test_no_filter_is_approximate_and_exact_is_exact(store: FaissStore) -> None:
    queries = clustered(np.random.default_rng(3), 50)
    result = store.search(queries, 10)
    assert result.plan.strategy == "approximate"
    assert result.plan.explored >= 10
    assert store.search(queries, 10, exact=True).plan.strategy == "exact"
    assert recall(store, queries, None) >= (0.98 if store.index.startswith("HNSW") else 0.9)


def test_similarities_are_exact_whatever_the_index_keeps(store: FaissStore) -> None:
    query = clustered(np.random.default_rng(4), 1)[0]
    hits = store.search(query, 10).hits[0]
    items = store.get([hit.id for hit in hits], with_vectors=True)
    unit = query / np.linalg.norm(query)
    np.testing.assert_allclose(
        [hit.similarity for hit in hits], [item.vector @ unit for item in items], atol=1e-6
    )


def test_a_filter_against_the_querys_surroundings_falls_back_to_exact(tmp_path: Path) -> None:
    """Half of all items pass, but none that is near the query."""
    rng = np.random.default_rng(5)
    sides = np.repeat([1.0, -1.0], 3000)[:, np.newaxis]
    vectors = sides * np.eye(DIM)[0] + 0.05 * rng.standard_normal((6000, DIM))
    tuning = Tuning(approximate_rows=1000, memtable_rows=10_000)
    with FaissStore.open(tmp_path / "store", dim=DIM, index="HNSW16", tuning=tuning) as store:
        store.upsert(Item(n, vectors[n], "near" if n < 3000 else "far") for n in range(6000))
        store.flush()
        result = store.search(vectors[0], 5, where={"label": "far"})
        exact = store.search(vectors[0], 5, where={"label": "far"}, exact=True)
    assert result.plan.strategy in ("approximate_then_exact", "exact")
    assert [hit.id for hit in result.hits[0]] == [hit.id for hit in exact.hits[0]]


def test_a_search_never_waits_or_fails_while_the_index_is_rebuilt(
    tmp_path: Path, brute_force: Callable
) -> None:
    rng = np.random.default_rng(6)
    vectors = clustered(rng, 3000)
    tuning = Tuning(approximate_rows=500, memtable_rows=200, build_threads=1)
    failures: list[str] = []
    done = threading.Event()
    with FaissStore.open(tmp_path / "store", dim=DIM, index="HNSW16", tuning=tuning) as store:
        store.upsert([Item("lighthouse", vectors[0] * 2, "always")])

        def look() -> None:
            while not done.is_set():
                hits = store.search(vectors[0], 3).hits[0]
                if not hits or hits[0].id != "lighthouse":
                    failures.append(str(hits))

        readers = [threading.Thread(target=look) for _ in range(2)]
        for reader in readers:
            reader.start()
        for start in range(1, 3000, 100):
            store.upsert(Item(n, vectors[n]) for n in range(start, min(start + 100, 3000)))
        store.delete(range(1, 2000))
        store.flush()
        done.set()
        for reader in readers:
            reader.join()
        assert not failures, failures[0]
        assert store.stats().dead <= 0.25 * store.count()


INVERTED = ("IVF128,Flat,nprobe=1", "PCA8,IVF128,SQ8,nprobe=1", "IVF128,SQ4,RFlat,nprobe=1")


@pytest.mark.parametrize("index", INVERTED)
def test_an_inverted_index_looks_until_it_has_k(tmp_path: Path, index: str) -> None:
    vectors = np.random.default_rng(7).standard_normal((20_000, 16)).astype(np.float32)
    tuning = Tuning(approximate_rows=1000, build_threads=1)
    with FaissStore.open(tmp_path / "store", dim=16, index=index, tuning=tuning) as store:
        store.upsert(Item(n, vectors[n]) for n in range(20_000))
        store.compact()
        few, many = store.search(vectors[:5], 5), store.search(vectors[:5], 300)
        one = store.search(vectors[0], 300)
    for result in (few, many, one):
        assert result.plan.strategy == "approximate"
    assert [len(hits) for hits in (*many.hits, *one.hits)] == [300] * 6
    assert [hits[0].id for hits in many.hits] == list(range(5))
    assert all(len({hit.id for hit in hits}) == 300 for hits in many.hits)
    # One list has about 150 rows.
    assert 5 <= few.plan.explored < 1000
    assert 300 <= many.plan.explored < 5000


def test_what_an_index_does_not_find_is_scanned() -> None:
    """A graph may have islands that no search reaches."""

    class Island:
        rows_per_neighbour = 0

        def least(self, k: int, effort: int | None = None) -> int:
            return k

        def search(self, queries: np.ndarray, k: int, effort: int | None = None) -> tuple:
            rows = np.full((len(queries), k), -1)
            rows[:, 0] = 3
            rows[1:, 1] = 4
            return np.where(rows < 0, -np.inf, 0.5).astype(np.float32), rows, 1

    vectors = clustered(np.random.default_rng(8), 50)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    part = Segment("x", np.arange(50), vectors, approximate=Island())
    _, rows, plan = part.find(vectors[:2], 2, None, SearchQuery())
    assert rows[0].tolist() == flat.scan(vectors[:1], vectors, 2)[1][0].tolist()
    assert rows[1].tolist() == [3, 4]
    assert plan.strategy == "approximate_then_exact"
