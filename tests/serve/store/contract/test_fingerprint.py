"""Vectors of another model or of another length never mix with those of a collection."""

from collections.abc import Callable

import numpy as np
import pytest

from serve.store.types import DimensionMismatch, FingerprintMismatch, Item, StoreError, StoreMissing


def test_a_collection_keeps_its_model_and_length(open_store: Callable) -> None:
    store = open_store(dim=4, fingerprint="model \"a\" 'ü'")
    store.upsert([Item(1, np.ones(4))], fingerprint="model \"a\" 'ü'")
    with pytest.raises(FingerprintMismatch, match="model b"):
        store.upsert([Item(2, np.ones(4))], fingerprint="model b")
    with pytest.raises(FingerprintMismatch):
        store.search(np.ones(4), fingerprint="model b")
    assert store.count() == 1
    store.close()
    with pytest.raises(FingerprintMismatch):
        open_store(dim=None, fingerprint="model b")
    with pytest.raises(DimensionMismatch):
        open_store(dim=5)
    store = open_store(dim=None)
    assert (store.dim, store.fingerprint, store.count()) == (4, "model \"a\" 'ü'", 1)


def test_a_collection_without_a_model_takes_any(open_store: Callable) -> None:
    store = open_store(dim=4)
    store.upsert([Item(1, np.ones(4))], fingerprint="model b")
    assert store.fingerprint is None


def test_what_is_not_there_is_not_created_unasked(open_store: Callable) -> None:
    for _ in range(2):
        with pytest.raises(StoreMissing):
            open_store(dim=4, create=False)


def test_a_new_collection_needs_a_length_and_a_known_index(open_store: Callable) -> None:
    with pytest.raises(StoreError, match="dim"):
        open_store(dim=None)
    with pytest.raises(StoreError, match="dim"):
        open_store(dim=0)
    with pytest.raises(StoreError, match="Sponge"):
        open_store(dim=4, index="Sponge")
    assert open_store(dim=4, index="Flat").index.upper() == "FLAT"


def test_a_closed_store_says_so(open_store: Callable) -> None:
    store = open_store(dim=4)
    store.close()
    store.close()
    for use in (
        store.count,
        lambda: store.upsert([Item(1, np.ones(4))]),
        lambda: store.search(np.ones(4), where={"id": 1}),
        lambda: store.get([]),
        lambda: store.delete([]),
        lambda: list(store.scan()),
    ):
        with pytest.raises(StoreError, match="closed"):
            use()
