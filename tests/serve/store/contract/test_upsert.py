"""Storing, reading, replacing and changing items."""

import json

import numpy as np
import pytest

from serve.store.types import DimensionMismatch, Item, ItemMissing, Store, StoreError


def test_what_goes_in_comes_out(filled: Store, items: list[Item]) -> None:
    found = filled.get([item.id for item in items], with_vectors=True)
    for item, back in zip(items, found, strict=True):
        assert back is not None
        assert (back.id, back.label, back.metadata) == (item.id, item.label, item.metadata)
        np.testing.assert_allclose(back.vector, item.vector / np.linalg.norm(item.vector), rtol=1e-6)
        assert back.thumbnail is None
        assert filled.thumbnail(item.id) == item.thumbnail
    assert filled.count() == len(items)


def test_empty_is_not_absent(store: Store, vectors: np.ndarray) -> None:
    store.upsert([Item("empty", vectors[0], "", thumbnail=b""), Item("absent", vectors[1])])
    assert [item.label for item in store.get(["empty", "absent"])] == ["", None]
    assert [store.thumbnail(item_id) for item_id in ("empty", "absent")] == [b"", None]
    assert store.labels() == {"": 1}
    assert {hit.id: hit.label for hit in store.search(vectors[0], 2).hits[0]} == {"empty": "", "absent": None}
    store.update("empty", {"label": None})
    store.update("absent", {"label": ""})
    assert [item.label for item in store.get(["empty", "absent"])] == [None, ""]
    assert store.thumbnail("empty") == b""


def test_text_and_number_ids_are_different(store: Store, vectors: np.ndarray) -> None:
    store.upsert([Item("1", vectors[0], "text"), Item(1, vectors[1], "number")])
    assert [item.label for item in store.get(["1", 1])] == ["text", "number"]
    assert store.get([2, "2", ""[:0] or "x"]) == [None, None, None]
    assert store.delete(["1"]) == 1
    assert store.get(["1"]) == [None]
    assert store.get([1])[0] is not None


@pytest.mark.parametrize(
    "id_",
    [
        "ümlaut 漢字",
        "a'b\"c;--",
        -(2**63),
        2**63 - 1,
        0,
        " ",
        "x" * 1024,
        "a\nb",
        "\n",
        "\x01\x85\u2028",
        np.int32(7),
    ],
)
def test_odd_ids(store: Store, vectors: np.ndarray, id_: str | int) -> None:
    store.upsert([Item(id_, vectors[0], "odd")])
    assert [hit.id for hit in store.search(vectors[0], 1).hits[0]] == [id_]
    assert store.get([id_])[0].label == "odd"
    assert store.delete([id_]) == 1


@pytest.mark.parametrize("id_", ["", 1.5, None, True, 2**63, b"x", "a\0b", "\ud800", ("a",), "x" * 1025])
def test_unusable_ids_are_refused(store: Store, vectors: np.ndarray, id_: object) -> None:
    with pytest.raises(StoreError, match="id"):
        store.upsert([Item(id_, vectors[0])])


def test_an_upsert_replaces_the_item_whole(filled: Store, vectors: np.ndarray) -> None:
    filled.upsert([Item("item 0", -vectors[0], "new")])
    item = filled.get(["item 0"], with_vectors=True)[0]
    assert (item.label, item.metadata) == ("new", {})
    assert filled.thumbnail("item 0") is None
    assert filled.count() == 200
    hits = filled.search(vectors[0], 200, exact=True).hits[0]
    assert [hit.id for hit in hits].count("item 0") == 1
    assert hits[-1].id == "item 0"
    assert hits[-1].similarity == pytest.approx(-1, abs=1e-6)


def test_of_equal_ids_in_one_upsert_the_last_counts(store: Store, vectors: np.ndarray) -> None:
    store.upsert([Item(n % 3, vectors[n], str(n)) for n in range(9)])
    assert store.count() == 3
    assert [item.label for item in store.get([0, 1, 2])] == ["6", "7", "8"]


def test_a_bad_item_leaves_nothing_of_its_call(store: Store, vectors: np.ndarray) -> None:
    bad = [
        ([1.0, 2.0], DimensionMismatch),
        (np.full(16, np.nan), StoreError),
        (np.full(16, np.inf), StoreError),
        (np.zeros(16), StoreError),
        (["a"] * 16, StoreError),
        (None, StoreError),
        (np.full(16, 1e30), None),
        (np.full(16, 1e-30), None),
    ]
    for vector, error in bad:
        items = [Item("good", vectors[0]), Item("bad", vector)]
        if error is None:
            assert store.upsert(items) == 2
            assert store.delete(["good", "bad"]) == 2
        else:
            with pytest.raises(error, match="item 'bad'") as caught:
                store.upsert(items)
            assert caught.value.position == 1
            assert store.count() == 0


@pytest.mark.parametrize(
    "metadata",
    [
        *({"x": float("nan")}, {"x": object()}, ["x"], "x", {"x": "\ud800"}, {"x": b"y"}, 5),
        *({"x": "y" * 66_000}, {"x": json.loads("[" * 32 + "]" * 32)}),
    ],
)
def test_metadata_must_be_plain_json(store: Store, vectors: np.ndarray, metadata: object) -> None:
    with pytest.raises(StoreError, match=r"item 'x'.*etadata") as caught:
        store.upsert([Item("good", vectors[0]), Item("x", vectors[0], metadata=metadata)])
    assert caught.value.position == 1
    store.upsert([Item("x", vectors[0], metadata={"kept": 1})])
    with pytest.raises(StoreError, match="etadata"):
        store.update("x", {"metadata": metadata})
    assert store.get(["x"])[0].metadata == {"kept": 1}


@pytest.mark.parametrize("field", [{"label": 3}, {"label": "\ud800"}, {"thumbnail": "text"}])
def test_labels_are_text_and_thumbnails_bytes(store: Store, vectors: np.ndarray, field: dict) -> None:
    with pytest.raises(StoreError):
        store.upsert([Item("x", vectors[0], **field)])


def test_an_edit_changes_only_what_it_names(filled: Store) -> None:
    before = filled.get([2 * 10 + 1, "item 20"])
    filled.update("item 20", {"label": "edited", "metadata": {"price": None, "shop": {"zip": 1}, "new": [1]}})
    after = filled.get(["item 20"])[0]
    assert after.label == "edited"
    assert after.metadata == {
        "shop": {"city": before[1].metadata["shop"]["city"], "zip": 1},
        "tags": [],
        "new": [1],
    }
    assert filled.thumbnail("item 20") == b"image 20"
    assert filled.get([21]) == before[:1]
    filled.update("item 20", {"label": None})
    assert filled.get(["item 20"])[0].label is None
    filled.update("item 20", {})
    with pytest.raises(ItemMissing):
        filled.update("nobody", {"label": "x"})
    with pytest.raises(StoreError, match="vector"):
        filled.update("item 20", {"vector": [1]})
