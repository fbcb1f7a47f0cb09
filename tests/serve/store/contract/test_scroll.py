"""Reading all items page by page."""

import pytest

from serve.store.types import Item, Store, StoreError


def test_scrolling_sees_every_item_once(filled: Store, items: list[Item]) -> None:
    seen, after = [], None
    while True:
        page = filled.scroll(after, 33)
        seen += page.items
        if page.next is None:
            break
        after = page.next
    assert [item.id for item in seen] == [item.id for item in items]
    assert len(filled.scroll(limit=200).items) == 200
    only = [item.id for item in filled.scan(where={"label": "label 2"}, with_vectors=True)]
    assert only == [item.id for item in items if item.label == "label 2"]
    with pytest.raises(StoreError, match="limit"):
        filled.scroll(limit=0)


def test_a_scan_survives_writes_between_its_pages(filled: Store, items: list[Item]) -> None:
    page = filled.scroll(None, 50)
    filled.delete([item.id for item in page.items])
    filled.upsert([items[100]])
    rest = list(filled.scan())
    assert {item.id for item in rest} == {item.id for item in items[50:]}
    assert filled.scroll(page.next, 500).items == rest


def test_a_scan_ends_though_its_items_are_rewritten(filled: Store, items: list[Item]) -> None:
    """What is written after its start is not for it: neither what is new nor what is written again."""
    more = [Item(f"more {n}", items[n % 200].vector) for n in range(2000)]
    filled.upsert(more)
    seen = []
    for item in filled.scan():
        seen.append(item.id)
        assert len(seen) <= 2200
        if len(seen) % 500 == 1:
            filled.upsert([*more[-20:], Item(f"new {len(seen)}", items[0].vector)])
            filled.upsert([Item(id_, items[0].vector) for id_ in seen[-1000:]])
    assert set(seen) <= {item.id for item in [*items, *more]}
    assert len(set(seen)) == len(seen) >= 2180


def test_a_sample_is_drawn_from_the_whole_collection(
    filled: Store, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [item.id for item in items]
    assert [item.id for item in filled.sample(500)] == everything
    filled.delete(everything[:100])
    left = everything[100:]
    assert [item.id for item in filled.sample(101)] == left
    seen: set[str | int] = set()
    for _ in range(60):
        drawn = [item.id for item in filled.sample(10)]
        assert drawn == sorted(set(drawn), key=everything.index)
        assert 0 < len(drawn) <= 10
        seen.update(drawn)
    assert len(seen) > 90
    assert seen <= set(left)
    (one,) = filled.sample(1, with_vectors=True)
    assert one.vector is not None
    assert one.label == next(item.label for item in items if item.id == one.id)


def test_a_sample_of_nothing_is_empty(store: Store) -> None:
    assert store.sample(5) == []
