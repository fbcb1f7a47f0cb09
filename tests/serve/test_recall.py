"""The recall that the service watches is that of real queries."""

from pathlib import Path

import numpy as np
import pytest

from serve import recall
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item, Store


def recall_of(store: Store, queries: np.ndarray) -> float:
    """Share of the ten nearest that the index finds."""
    found, exact = (store.search(queries, 10, exact=way, with_metadata=False).hits for way in (False, True))
    return float(
        np.mean(
            [
                len({a.id for a in one} & {b.id for b in two}) / 10
                for one, two in zip(found, exact, strict=True)
            ]
        )
    )


@pytest.mark.parametrize("index", ["HNSW8,ef=10", "IVF64,Flat,nprobe=1"])
def test_the_measured_recall_is_near_that_of_queries_from_outside(tmp_path: Path, index: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 32))
    vectors = centres[rng.integers(300, size=6000)] + rng.standard_normal((6000, 32))
    tuning = Tuning(build_threads=1, approximate_rows=1000)
    with FaissStore.open(tmp_path / "store", dim=32, index=index, tuning=tuning) as store:
        store.upsert(Item(n, vector) for n, vector in enumerate(vectors[:5000]))
        store.compact()
        outside, own = recall_of(store, vectors[5000:]), recall_of(store, vectors[:1000])
        measured, queries = recall.measure(store, samples=600)
    assert queries > 500
    assert outside < own - 0.04
    assert abs(measured - outside) < (own - outside) / 2


def test_copies_of_one_vector_do_not_make_it_easy(tmp_path: Path) -> None:
    """Where every item is stored twice, its nearest neighbour says nothing of where others are."""
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    with FaissStore.open(tmp_path / "store", dim=8) as store:
        store.upsert(Item(n, vectors[n % 50]) for n in range(100))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.abs(recall._moved(store, unit) - unit).max(axis=1).min() > 0.01
        assert recall.measure(store) == (1.0, recall.SAMPLES)


def test_an_empty_store_and_one_item(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=2) as store:
        assert recall.measure(store) == (1.0, 0)
        store.upsert([Item("x", [1.0, 0.0])])
        assert recall.measure(store) == (1.0, 1)
