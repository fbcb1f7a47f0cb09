"""Deleting items by id and by filter; erased, they are gone from the disk, or nothing is deleted."""

import pytest

from serve.store.types import Item, Store, StoreError, Unsupported


@pytest.mark.parametrize("one", ["abc", b"abc", 1, None])
def test_one_id_is_not_a_list_of_ids(store: Store, items: list[Item], one: object) -> None:
    store.upsert([Item(name, item.vector) for name, item in zip("abc", items, strict=False)])
    for call in (store.delete, store.get, lambda ids: store.search(items[0].vector, exclude=ids)):
        with pytest.raises(StoreError, match=r"not a list; put it into one: \["):
            call(one)
    with pytest.raises(StoreError, match="not a list"):
        store.search_examples(one)
    assert store.count() == 3


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


def test_erasing_deletes_or_is_refused(filled: Store, items: list[Item], kind: str) -> None:
    if kind.startswith(("lite", "server")):
        with pytest.raises(Unsupported, match="compact"):
            filled.delete([1], erase=True)
        with pytest.raises(Unsupported):
            filled.purge()
        assert filled.get([1]) != [None]
        assert filled.count() == len(items)
    else:
        assert filled.delete([1], erase=True) == 1
        filled.purge()
        assert filled.count() == len(items) - 1
