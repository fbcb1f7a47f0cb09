"""Vectors of another model or of another length never mix with those of a collection."""

from pathlib import Path

import numpy as np
import pytest

from serve.store.collection import FaissStore
from serve.store.types import DimensionMismatch, FingerprintMismatch, Item, StoreError, StoreMissing


def test_a_collection_keeps_its_model_and_length(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=4, fingerprint="model a") as store:
        store.upsert([Item(1, np.ones(4))], fingerprint="model a")
        with pytest.raises(FingerprintMismatch, match="model b"):
            store.upsert([Item(2, np.ones(4))], fingerprint="model b")
        with pytest.raises(FingerprintMismatch):
            store.search(np.ones(4), fingerprint="model b")
        assert store.count() == 1
    with pytest.raises(FingerprintMismatch):
        FaissStore.open(tmp_path / "store", fingerprint="model b")
    with pytest.raises(DimensionMismatch):
        FaissStore.open(tmp_path / "store", dim=5)
    with FaissStore.open(tmp_path / "store") as store:
        assert (store.dim, store.fingerprint, store.count()) == (4, "model a", 1)


def test_a_collection_without_a_model_takes_any(tmp_path: Path) -> None:
    with FaissStore.open(tmp_path / "store", dim=4) as store:
        store.upsert([Item(1, np.ones(4))], fingerprint="model b")
        assert store.fingerprint is None


def test_a_new_collection_needs_a_length_and_a_known_index(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="dim"):
        FaissStore.open(tmp_path / "a")
    with pytest.raises(StoreError, match="dim"):
        FaissStore.open(tmp_path / "a", dim=0)
    with pytest.raises(StoreError, match="Sponge"):
        FaissStore.open(tmp_path / "a", dim=4, index="Sponge")
    with FaissStore.open(tmp_path / "a", dim=4) as store:
        assert store.index == "Flat"


def test_what_is_not_there_is_not_created_unasked(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        FaissStore.open(tmp_path / "none", dim=4, create=False)
    with pytest.raises(StoreMissing):
        FaissStore.open(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StoreError, match="other files"):
        FaissStore.open(tmp_path, dim=4)
    with pytest.raises(StoreError, match="is a file"):
        FaissStore.open(tmp_path / "photo.jpg", dim=4)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
