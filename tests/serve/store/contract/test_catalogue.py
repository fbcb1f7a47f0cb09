"""Several collections, and aliases that move at once."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from serve.store.catalogue import open_catalogue
from serve.store.milvus.engine import Engine
from serve.store.types import Item, StoreError, StoreLocked, StoreMissing


@pytest.fixture(params=["folder", "lite", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """Where the test's catalogue lies; on a server, in a database of its own."""
    if request.param != "server":
        yield tmp_path / "store" if request.param == "folder" else f"file:{tmp_path / 'lite'}"
        return
    server: Engine = request.getfixturevalue("server")
    database = f"contract_{uuid.uuid4().hex[:8]}"
    server.call("create_database", database)
    address = f"{server.address.uri}/{database}"
    yield address
    with open_catalogue(address) as catalogue:
        for alias in catalogue.aliases():
            catalogue.set_alias(alias, None)
        for name in catalogue.collections():
            catalogue.drop(name)
    server.call("drop_database", database)


@pytest.fixture
def open_(place: Path | str) -> Iterator[Callable]:
    """Opens the test's catalogue, again after a close."""
    opened = []

    def open_again():
        opened.append(open_catalogue(place))
        return opened[-1]

    yield open_again
    for catalogue in opened:
        catalogue.close()


def test_a_new_models_collection_takes_over_by_alias(open_: Callable, place: Path | str) -> None:
    with open_() as catalogue:
        old = catalogue.create("model-1", 4, "one")
        old.upsert([Item("x", np.ones(4), "old")])
        catalogue.set_alias("live", "model-1")
        assert catalogue.collection("live") is old
        new = catalogue.create("model-2", 8, "two", "HNSW8")
        new.upsert([Item("x", np.ones(8), "new")])
        assert catalogue.collection("live") is old
        catalogue.set_alias("live", "model-2")
        assert catalogue.collection("live") is new
        assert catalogue.collections() == ["model-1", "model-2"]
        with pytest.raises(StoreError, match="alias"):
            catalogue.drop("model-2")
        catalogue.drop("model-1")
        with pytest.raises(StoreError, match="closed"):
            old.count()
        # A server is there for several processes at once.
        with nullcontext() if str(place).startswith("milvus:") else pytest.raises(StoreLocked):
            open_()
    with open_() as catalogue:
        assert catalogue.aliases() == {"live": "model-2"}
        assert catalogue.collections() == ["model-2"]
        live = catalogue.collection("live")
        assert live is catalogue.collection("model-2")
        assert live.get(["x"])[0].label == "new"
        assert (live.name, live.dim, live.fingerprint) == ("model-2", 8, "two")
        assert live.index.startswith("HNSW")


def test_names_are_checked(open_: Callable) -> None:
    with open_() as catalogue:
        catalogue.create("a", 4)
        for name in ("", "..", "a/b", "x" * 65, "ä", ".hidden", "a\n"):
            with pytest.raises(StoreError):
                catalogue.create(name, 4)
            with pytest.raises(StoreError):
                catalogue.set_alias(name, "a")
        catalogue.set_alias("b", "a")
        for taken in ("a", "b"):
            with pytest.raises(StoreError, match="exists"):
                catalogue.create(taken, 4)
        with pytest.raises(StoreError, match="collection"):
            catalogue.set_alias("a", "a")
        with pytest.raises(StoreMissing):
            catalogue.set_alias("c", "nothing")
        with pytest.raises(StoreMissing):
            catalogue.collection("nothing")
        with pytest.raises(StoreMissing):
            catalogue.drop("nothing")
        catalogue.set_alias("b", None)
        catalogue.set_alias("never", None)
        assert catalogue.aliases() == {}
        assert catalogue.collections() == ["a"]
