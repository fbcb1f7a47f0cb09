"""What is larger than Milvus takes is refused before anything is sent."""

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from serve.store.milvus.engine import Engine
from serve.store.milvus.schema import MOST_THUMBNAIL_BYTES, checked_rows, messages
from serve.store.milvus.store import MilvusStore
from serve.store.types import Item, StoreError


@pytest.fixture
def store(lite: Engine) -> Iterator[MilvusStore]:
    store = MilvusStore.on(lite, 4, collection=f"limits-{uuid.uuid4().hex[:8]}")
    yield store
    lite.call("drop_collection", "kindred_" + store.name.replace("-", "_d"))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Item("x", np.ones(4), thumbnail=b"x" * (MOST_THUMBNAIL_BYTES + 1)), "thumbnail"),
        (Item("x", np.ones(4), metadata={"text": "x" * 70_000}), "Metadata"),
        (Item("x", np.ones(4), label="ü" * 40_000), "label"),
        (Item("ü" * 40_000, np.ones(4)), "id"),
    ],
)
def test_too_large(store: MilvusStore, item: Item, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        store.upsert([Item("good", np.ones(4)), item])
    assert len(str(caught.value)) < 200
    assert store.count() == 0


def test_just_small_enough(store: MilvusStore) -> None:
    item = Item("x" * 1024, np.ones(4), "x" * 60_000, {"text": "x" * 60_000}, b"x" * MOST_THUMBNAIL_BYTES)
    store.upsert([item])
    assert store.thumbnail(item.id) == item.thumbnail
    (found,) = store.get([item.id])
    assert (found.id, found.label, found.metadata) == (item.id, item.label, item.metadata)
    with pytest.raises(StoreError, match="16,384"):
        store.search(np.ones(4), 20_000)


def test_a_large_call_goes_in_several_messages(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.store.milvus.schema._MOST_MESSAGE_BYTES", 100_000)
    monkeypatch.setattr("serve.store.milvus.store._DELETED_AT_ONCE", 7)
    sizes = [len(run) for run in messages(checked_rows([Item(n, np.ones(4)) for n in range(1000)], 4))]
    assert sum(sizes) == 1000
    assert len(sizes) > 1
    assert store.upsert(Item(n, np.eye(4)[n % 4], thumbnail=b"x" * 10_000) for n in range(90)) == 90
    assert store.count() == 90
    assert [item.id for item in store.scan()] == list(range(90))
    assert store.delete(where={"id": {"gte": 10}}) == 80
    assert store.scroll(None, 5).next is not None
    assert [item.id for item in store.scan()] == list(range(10))
