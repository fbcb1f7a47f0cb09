"""Every store, for the tests of what every store does; an implementation joins by adding how it is opened.

With KINDRED_MILVUS_URI in the environment (and KINDRED_MILVUS_TOKEN, where the server wants one) they run
over that server as well, or else over one that is started here, if `milvus-server` is on the PATH. Their
collections there begin with `contract-` and are dropped at the end.
"""

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.milvus.capabilities import Capabilities
from serve.store.milvus.engine import TOKEN, Engine, milvus_name, our_name, parse_address
from serve.store.milvus.store import MilvusStore
from serve.store.types import Item, Store
from tests.milvus_server import COMMAND, milvus_server

DIM = 16
URI = os.environ.get("KINDRED_MILVUS_URI", "")

# FaissStore with its vectors in one piece of memory, in many small segments, and in small HNSW graphs; Milvus
# with an exact and with an approximate index.
SMALL = {"memtable_rows": 40, "build_threads": 1, "transaction_rows": 64}
FAISS: dict[str, dict[str, Any]] = {
    "memtable": {},
    "segments": {"tuning": Tuning(**SMALL)},
    "hnsw": {"index": "HNSW8", "tuning": Tuning(**SMALL, approximate_rows=30)},
}
LITE: dict[str, dict[str, Any]] = {"lite": {}, "lite-hnsw": {"index": "HNSW"}}
SERVED: dict[str, dict[str, Any]] = {"server": {}, "server-hnsw": {"index": "HNSW"}}
STORES = [*FAISS, *LITE, *SERVED]
# Milvus's own approximate index changes nothing outside these.
SEARCHING = ("test_search", "test_group", "test_filter")

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
    """One engine serves all tests; each has a collection of its own.

    A server takes seconds to make a collection searchable: those with the usual options are emptied at the
    end of a test and used again.
    """

    _names = itertools.count()

    def __init__(self, engine: Engine, options: dict[str, Any], used: list[str]) -> None:
        self._engine, self._options, self._used = engine, options, used
        self._collection = ""
        self._usual = False

    def open(self, **options: Any) -> Store:
        if not self._collection:
            self._usual = options == {"dim": DIM}
            again = self._usual and self._used
            self._collection = (
                self._used.pop() if again else f"contract-{uuid.uuid4().hex[:8]}-{next(self._names)}"
            )
        return MilvusStore.on(self._engine, collection=self._collection, **{**self._options, **options})

    def close(self) -> None:
        if not self._collection or not self._engine.call("has_collection", milvus_name(self._collection)):
            return
        if self._usual and not self._engine.can.embedded:
            store = MilvusStore.on(self._engine, collection=self._collection)
            store.delete(where={"id": {"exists": True}})
            if store.stats().field_indexes == ("label",):
                self._used.append(self._collection)
                return
        self._engine.call("drop_collection", milvus_name(self._collection))


@pytest.fixture(scope="session")
def server_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Milvus server's address."""
    if URI:
        yield URI
    elif COMMAND is None:
        pytest.skip("no Milvus server; run make milvus-server, or name one in KINDRED_MILVUS_URI")
    elif "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("a Milvus server is started in one process only; run make contract")
    else:
        with milvus_server(tmp_path_factory.mktemp("server")) as started:
            yield started.address


@pytest.fixture(scope="session")
def server(server_address: str) -> Iterator[Engine]:
    """A connection to that server."""
    engine = Engine(parse_address(server_address), token=os.environ.get(TOKEN, ""))
    yield engine
    for name in engine.call("list_collections"):
        if (our_name(name) or "").startswith("contract-"):
            engine.call("drop_collection", name)
    engine.close()


@pytest.fixture(scope="session")
def used_collections() -> dict[str, list[str]]:
    """Empty collections that earlier tests have left, by kind of store."""
    return {kind: [] for kind in STORES}


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
    else:
        engine = request.getfixturevalue("lite" if kind in LITE else "server")
        used = request.getfixturevalue("used_collections")[kind]
        place = MilvusHome(engine, (LITE | SERVED)[kind], used)
    yield place
    place.close()


@pytest.fixture
def can(kind: str, request: pytest.FixtureRequest) -> Capabilities | None:
    """What the Milvus behind the store can do; None over FaissStore."""
    return None if kind in FAISS else request.getfixturevalue("lite" if kind in LITE else "server").can


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
        store.flush()
        store.upsert(items[100:])
    else:
        store.upsert(items)
    return store
