"""Every store, for the tests of what every store does; an implementation joins by adding how it is opened.

With KINDRED_MILVUS_URI in the environment (and KINDRED_MILVUS_TOKEN, where the server wants one) they run
over that server as well. Their collections there begin with `contract-` and are dropped at the end of each
test.
"""

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from serve.store.definition import Tuning
from serve.store.faiss_store import FaissStore
from serve.store.milvus.address import TOKEN, milvus_name, parse_address
from serve.store.milvus.engine import Engine
from serve.store.milvus.store import MilvusStore
from serve.store.protocol import Item, Store

DIM = 16
SERVER = os.environ.get("KINDRED_MILVUS_URI", "")

# FaissStore with its vectors in one piece of memory, in many small segments, and in small HNSW graphs; Milvus
# with an exact and with an approximate index.
SMALL = {"head_rows": 40, "build_threads": 1, "transaction_rows": 64}
FAISS: dict[str, dict[str, Any]] = {
    "head": {},
    "segments": {"tuning": Tuning(**SMALL)},
    "hnsw": {"index": "HNSW8", "tuning": Tuning(**SMALL, approximate_rows=30)},
}
LITE: dict[str, dict[str, Any]] = {"lite": {}, "lite-hnsw": {"index": "HNSW"}}
SERVED: dict[str, dict[str, Any]] = {"server": {}, "server-hnsw": {"index": "HNSW"}} if SERVER else {}
STORES = [*FAISS, *LITE, *SERVED]
# Milvus's own approximate index changes nothing outside these.
SEARCHING = ("test_search", "test_group", "test_examples", "test_filter")

OpenStore = Callable[..., Store]


class Home(Protocol):
    """Where a test's store lies; `open` opens it, again after a close."""

    def open(self, **options: Any) -> Store: ...

    def close(self) -> None: ...


class FaissHome:
    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._folder, self._options = folder, options
        self._opened: list[Store] = []

    def open(self, **options: Any) -> Store:
        self._opened.append(FaissStore.open(self._folder, **{**self._options, **options}))
        return self._opened[-1]

    def close(self) -> None:
        for store in self._opened:
            store.close()


class MilvusHome:
    """One engine serves all tests; each has a collection of its own."""

    _names = itertools.count()

    def __init__(self, engine: Engine, options: dict[str, Any]) -> None:
        self._engine, self._options = engine, options
        self._collection = f"contract-{uuid.uuid4().hex[:8]}-{next(self._names)}"

    def open(self, **options: Any) -> Store:
        return MilvusStore.on(self._engine, collection=self._collection, **{**self._options, **options})

    def close(self) -> None:
        if self._engine.call("has_collection", milvus_name(self._collection)):
            self._engine.call("drop_collection", milvus_name(self._collection))


@pytest.fixture(scope="session")
def server() -> Iterator[Engine]:
    """The server that KINDRED_MILVUS_URI names."""
    engine = Engine(parse_address(SERVER), token=os.environ.get(TOKEN, ""))
    yield engine
    engine.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        searches = metafunc.module.__name__.endswith(SEARCHING)
        kinds = [kind for kind in STORES if searches or kind not in ("lite-hnsw", "server-hnsw")]
        metafunc.parametrize("kind", kinds, indirect=True)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Which store the test runs over."""
    return request.param


@pytest.fixture
def home(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Home]:
    place: Home
    if kind in FAISS:
        place = FaissHome(tmp_path / "store", FAISS[kind])
    elif kind in LITE:
        place = MilvusHome(request.getfixturevalue("lite"), LITE[kind])
    else:
        place = MilvusHome(request.getfixturevalue("server"), SERVED[kind])
    yield place
    place.close()


@pytest.fixture
def open_store(home: Home) -> OpenStore:
    """Opens the test's store."""
    return lambda **options: home.open(**{"dim": DIM, **options})


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


@pytest.fixture
def filled(store: Store, items: list[Item], kind: str) -> Store:
    if kind in LITE:
        # Half of them in a segment with its index, half in memory: both are searched.
        store.upsert(items[:100])
        store.snapshot()
        store.upsert(items[100:])
    else:
        store.upsert(items)
    return store
