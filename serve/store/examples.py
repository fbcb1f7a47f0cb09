"""A query from examples: like these, unlike those."""

from __future__ import annotations

from collections.abc import Sequence

from serve.store.protocol import ItemId, ItemMissing, Store, StoreError, Vectors
from serve.store.rows import check_id
from serve.store.vectors import unit_rows


def example_query(
    store: Store, positives: Sequence[ItemId | Vectors], negatives: Sequence[ItemId | Vectors]
) -> tuple[Vectors, list[ItemId]]:
    """The query 2·mean(positives) − mean(negatives), and the ids among the examples.

    Raises:
        ItemMissing: An example's id is not in the store.
        StoreError: There is no positive example, or the examples cancel out.
    """
    if len(positives) == 0:
        raise StoreError("There is no positive example; give at least one id or vector")
    query = _vectors(store, positives).mean(axis=0)
    if len(negatives):
        query = 2 * query - _vectors(store, negatives).mean(axis=0)
    if not query.any():
        raise StoreError("The examples cancel out; give others")
    return query, [check_id(value) for value in (*positives, *negatives) if isinstance(value, str | int)]


def _vectors(store: Store, examples: Sequence[ItemId | Vectors]) -> Vectors:
    ids = [check_id(value) for value in examples if isinstance(value, str | int)]
    found = dict(zip(ids, store.get(ids, with_vectors=True), strict=True))
    vectors = []
    for value in examples:
        if isinstance(value, str | int):
            item = found[check_id(value)]
            if item is None:
                raise ItemMissing(f"There is no item {value!r}")
            vectors.append(item.vector)
        else:
            vectors.append(value)
    return unit_rows(vectors, store.dim, "example")
