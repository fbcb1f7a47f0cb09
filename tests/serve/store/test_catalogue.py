"""A folder of collections: opened by alias, or only looked at."""

from pathlib import Path

import pytest

from serve.store.catalogue import Catalogue
from serve.store.collection import FaissStore
from serve.store.types import ReadOnly, StoreMissing


def test_a_store_opens_by_alias(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "store") as catalogue:
        catalogue.create("model-2", 8, "two", "HNSW8")
        catalogue.set_alias("live", "model-2")
    with FaissStore.open(tmp_path / "store", collection="live") as store:
        assert store.name == "model-2"
        assert (store.dim, store.fingerprint, store.index) == (8, "two", "HNSW8")


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
