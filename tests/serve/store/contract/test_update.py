"""Changing label and metadata of a stored item in part."""

import pytest

from serve.store.types import ItemMissing, Store, StoreError


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
