"""The best hit of each label."""

import numpy as np
import pytest

from serve.store.types import Item, Store, StoreError


def test_grouping_keeps_the_best_of_each_label(filled: Store, items: list[Item]) -> None:
    queries = np.stack([items[0].vector, items[50].vector])
    for every, hits in zip(
        filled.search(queries, 200, exact=True).hits,
        filled.search(queries, 12, exact=True, group_by="label").hits,
        strict=True,
    ):
        expected, seen = [], set()
        for hit in every:
            if hit.label is None or hit.label not in seen:
                expected.append(hit)
                seen.add(hit.label)
        assert [(hit.id, hit.label, hit.metadata) for hit in hits] == [
            (hit.id, hit.label, hit.metadata) for hit in expected[:12]
        ]
        np.testing.assert_allclose(
            [hit.similarity for hit in hits], [hit.similarity for hit in expected[:12]], atol=1e-6
        )
    every = filled.search(
        queries[0], 200, group_by="label", exclude=["item 0"], where={"label": {"exists": True}}
    )
    assert len(every.hits[0]) == 7
    with pytest.raises(StoreError, match="group"):
        filled.search(queries, group_by="price")


def test_groups_without_metadata_are_the_same(filled: Store, vectors: np.ndarray) -> None:
    whole = filled.search(vectors[:2], 12, exact=True, group_by="label").hits
    bare = filled.search(vectors[:2], 12, exact=True, group_by="label", with_metadata=False).hits
    assert [[hit.id for hit in hits] for hits in bare] == [[hit.id for hit in hits] for hits in whole]
    assert not any(hit.label or hit.metadata for hits in bare for hit in hits)
