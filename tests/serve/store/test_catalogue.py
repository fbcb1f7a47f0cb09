"""Several collections in one folder, and aliases that move at once."""

from pathlib import Path

import numpy as np
import pytest

from serve.store.catalogue import Catalogue
from serve.store.faiss_store import FaissStore
from serve.store.protocol import Item, ReadOnly, StoreError, StoreLocked, StoreMissing


def test_a_new_models_collection_takes_over_by_alias(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
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
        with pytest.raises(StoreLocked):
            Catalogue(tmp_path / "store")
    with Catalogue(tmp_path / "store", create=False) as catalogue:
        assert catalogue.aliases() == {"live": "model-2"}
        assert catalogue.collections() == ["model-2"]
        assert catalogue.collection("live").get(["x"])[0].label == "new"
    with FaissStore.open(tmp_path / "store", collection="live") as store:
        assert store.name == "model-2"
        assert (store.dim, store.fingerprint, store.index) == (8, "two", "HNSW8")


def test_names_are_checked(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
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
        assert catalogue.aliases() == {}
        assert catalogue.collections() == ["a"]


def test_looking_only(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        Catalogue(tmp_path / "store", read_only=True)
    with (
        FaissStore.open(tmp_path / "store", dim=4),
        Catalogue(tmp_path / "store", read_only=True) as catalogue,
    ):
        assert catalogue.collections() == ["default"]
        assert catalogue.collection().count() == 0
        with pytest.raises(ReadOnly):
            catalogue.set_alias("x", "default")
        with pytest.raises(ReadOnly):
            catalogue.drop("default")
