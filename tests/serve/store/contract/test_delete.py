"""Deleting items by id and by filter."""

from serve.store.types import Item, Store


def test_deleting_by_id_and_by_filter(filled: Store, items: list[Item]) -> None:
    assert filled.delete(["item 0", "item 0", 1, "nobody"]) == 2
    assert filled.delete(["item 2"], where={"label": "label 3"}) == 26
    assert filled.delete() == 0
    left = {item.id for item in filled.scan()}
    assert left == {i.id for i in items if i.id not in ("item 0", 1, "item 2") and i.label != "label 3"}
    assert filled.count() == len(left)
    assert filled.thumbnail("item 0") is None
    found = {hit.id for hit in filled.search(items[5].vector, 200).hits[0]}
    assert found == left
