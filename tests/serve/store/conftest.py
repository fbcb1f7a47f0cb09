"""Items, a naive twin of a search, and FaissStore in three forms."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.milvus.engine import Engine, parse_address
from serve.store.types import Item, Store

# Hypothesis would fail an example that takes longer than 200 ms, as any may on a busy machine.
settings.register_profile("kindred", deadline=None)
settings.load_profile("kindred")

DIM = 16

# With its vectors in one piece of memory, in many small segments, and in small HNSW graphs.
SMALL = {"memtable_rows": 40, "build_threads": 1, "transaction_rows": 64}
STORES: dict[str, dict[str, Any]] = {
    "memtable": {},
    "segments": {"tuning": Tuning(**SMALL)},
    "hnsw": {"index": "HNSW8", "tuning": Tuning(**SMALL, approximate_rows=30)},
}

OpenStore = Callable[..., Store]


@pytest.fixture(params=sorted(STORES))
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the test's store, again after a close; whatever is left open is closed at the end."""
    opened: list[Store] = []

    def open_(**options: Any) -> Store:
        store = FaissStore.open(tmp_path / "store", **{"dim": DIM, **STORES[request.param], **options})
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


def draw(rng: np.random.Generator, count: int, dim: int = DIM) -> np.ndarray:
    return rng.standard_normal((count, dim), dtype=np.float32)


@pytest.fixture
def vectors() -> np.ndarray:
    """(200, DIM) random vectors, not normalized."""
    return draw(np.random.default_rng(0), 200)


@pytest.fixture
def items(vectors: np.ndarray) -> list[Item]:
    """200 items: ids of both kinds, seven labels and none, nested metadata, a thumbnail on every tenth."""
    return [
        Item(
            id=number if number % 2 else f"item {number}",
            vector=vector,
            label=None if number % 8 == 7 else f"label {number % 8}",
            metadata={"price": number / 4, "shop": {"city": "ABC"[number % 3]}, "tags": ["x"] * (number % 2)},
            thumbnail=b"image %d" % number if number % 10 == 0 else None,
        )
        for number, vector in enumerate(vectors)
    ]


@pytest.fixture
def filled(store: Store, items: list[Item]) -> Store:
    store.upsert(items)
    return store


@pytest.fixture
def brute_force() -> Callable[..., list[list[tuple[Any, float]]]]:
    """The naive twin of a search: ids and similarities by sorting all of them."""

    def search(items: list[Item], queries: np.ndarray, k: int) -> list[list[tuple[Any, float]]]:
        if not items:
            return [[] for _ in queries]
        rows = np.array([item.vector for item in items], np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        unit = queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
        similarities = unit @ rows.T
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        return [
            [(items[column].id, float(similarities[row, column])) for column in columns]
            for row, columns in enumerate(order)
        ]

    return search


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """milvus-lite, started once: that takes seconds."""
    engine = Engine(parse_address(f"file:{tmp_path_factory.mktemp('milvus') / 'lite'}"))
    yield engine
    engine.close()
