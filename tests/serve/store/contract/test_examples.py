"""Search by items like these and unlike those."""

from collections.abc import Callable

import numpy as np
import pytest

from serve.store.types import Item, ItemMissing, Store, StoreError


def test_like_these_unlike_those(filled: Store, items: list[Item], brute_force: Callable) -> None:
    unit = [item.vector / np.linalg.norm(item.vector) for item in items]
    query = unit[1] + unit[2] - unit[3]
    expected = brute_force([item for item in items if item.id not in (1, "item 2", 3)], query[np.newaxis], 5)
    hits = filled.search_examples([1, "item 2"], [3], 5, exact=True).hits[0]
    assert [hit.id for hit in hits] == [id_ for id_, _ in expected[0]]
    by_vector = filled.search_examples([1, 5 * items[2].vector], [items[3].vector], 8, exact=True).hits[0]
    assert {hit.id for hit in hits} <= {hit.id for hit in by_vector} | {3}
    assert filled.search_examples([items[9].vector], k=1).hits[0][0].id == 9
    with pytest.raises(ItemMissing):
        filled.search_examples(["nobody"])
    with pytest.raises(StoreError, match="positive"):
        filled.search_examples([])
    with pytest.raises(StoreError, match="cancel"):
        filled.search_examples([unit[0], -unit[0]])
