"""Arguments of other types than Python's own: NumPy's and torch's, and what is no number or item at all."""

from typing import Any

import numpy as np
import pytest
import torch

from serve.store.types import Item, Store, StoreError


def test_ids_and_values_of_numpy(store: Store, vectors: np.ndarray) -> None:
    named = zip(np.array(["a", "b"]), vectors[:2], strict=True)
    store.upsert(Item(name, v, metadata={"n": i}) for i, (name, v) in enumerate(named))
    store.upsert([Item(np.int64(7), vectors[2], metadata={"n": 2})])
    assert [type(item.id) for item in store.get(["a", "b", 7])] == [str, str, int]
    assert len(store.search(vectors[0], np.int64(2)).hits[0]) == 2
    assert len(store.search(vectors[0], k=np.int64(3), effort=np.int64(16)).hits[0]) == 3
    assert store.count({"metadata.n": np.int64(2)}) == 1
    assert store.count({"metadata.n": {"in": list(np.arange(2))}}) == 2
    assert len(store.scroll(limit=np.int64(2)).items) == 2
    hits = store.search_examples([np.int64(7)]).hits[0]
    assert {hit.id for hit in hits} == {"a", "b"}


@pytest.mark.parametrize("k", ["5", None, 1.5])
def test_a_number_that_is_none(store: Store, vectors: np.ndarray, k: Any) -> None:
    with pytest.raises(StoreError, match=r"k is .*; give a whole number"):
        store.search(vectors[0], k)
    with pytest.raises(StoreError, match=r"k is .*; give a whole number"):
        store.search(vectors[0], k=k)
    with pytest.raises(StoreError, match=r"limit is .*; give a whole number"):
        store.scroll(limit=k)


@pytest.mark.parametrize("least", ["0.5", float("nan")])
def test_a_similarity_that_is_none(store: Store, vectors: np.ndarray, least: Any) -> None:
    with pytest.raises(StoreError, match=r"min_similarity is .*; give a number"):
        store.search(vectors[0], min_similarity=least)


def test_a_limit_beyond_64_bits(store: Store, vectors: np.ndarray) -> None:
    store.upsert([Item("a", vectors[0])])
    assert len(store.scroll(limit=10**30).items) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Item("a", [1.0] * 16), "takes a list of items, not one Item"),
        (None, "takes a list of items, not one NoneType"),
        ([{"id": "a", "vector": [1.0] * 16}], r"item 0: A dict is no Item; give Item\("),
        ([("a", [1.0] * 16)], "item 0: A tuple is no Item"),
        ([Item("a", torch.ones(16, requires_grad=True))], "item 'a': A vector .*detach"),
        ([Item("a", torch.ones(16, dtype=torch.bfloat16))], "item 'a': A vector .*BFloat16"),
    ],
)
def test_what_cannot_be_stored(store: Store, given: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        store.upsert(given)
    assert store.count() == 0
