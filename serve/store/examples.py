"""Searches by examples: like these, unlike those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from serve.store.protocol import (
    DEFAULT_K,
    ItemId,
    ItemMissing,
    QueryArguments,
    SearchQuery,
    SearchResult,
    Store,
    StoreError,
    Vectors,
)
from serve.store.rows import check_id
from serve.store.vectors import unit_rows


class ByExamples:
    """The part of a store that searches by examples: their vectors are read first, then searched by."""

    def search_examples(
        self: Store,
        positives: Sequence[ItemId | Vectors],
        negatives: Sequence[ItemId | Vectors] = (),
        query: SearchQuery | int = DEFAULT_K,
        **options: Unpack[QueryArguments],
    ) -> SearchResult:
        """Finds items like the positive and unlike the negative examples; see `Store.search_examples`."""
        query = SearchQuery.of(query, options)
        if len(positives) == 0:
            raise StoreError("There is no positive example; give at least one id or vector")
        vector = _vectors(self, positives).mean(axis=0)
        if len(negatives):
            vector = 2 * vector - _vectors(self, negatives).mean(axis=0)
        if not vector.any():
            raise StoreError("The examples cancel out; give others")
        named = [value for value in (*positives, *negatives) if isinstance(value, str | int)]
        return self.search(vector, query, exclude=(*query.exclude, *named))


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
