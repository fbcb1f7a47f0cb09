"""Search by vectors, against a naive twin, and by items like these and unlike those."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serve.store.types import DimensionMismatch, Item, ItemMissing, SearchQuery, Store, StoreError


@pytest.mark.parametrize("queries", [1, 3, 20])
@pytest.mark.parametrize("k", [1, 10, 200, 1000])
def test_exact_search_is_the_naive_one(
    filled: Store, items: list[Item], brute_force: Callable, queries: int, k: int
) -> None:
    asked = np.random.default_rng(1).standard_normal((queries, 16)).astype(np.float32)
    expected = brute_force(items, asked, k)
    for hits, right in zip(filled.search(asked, k, exact=True).hits, expected, strict=True):
        assert [hit.id for hit in hits] == [id_ for id_, _ in right]
        np.testing.assert_allclose([hit.similarity for hit in hits], [s for _, s in right], atol=1e-6)


def test_hits_carry_label_and_metadata(filled: Store, items: list[Item]) -> None:
    hit = filled.search(items[13].vector, 1).hits[0][0]
    assert (hit.id, hit.label, hit.metadata) == (13, "label 5", items[13].metadata)
    assert hit.similarity == pytest.approx(1, abs=1e-6)
    assert hit.similarity <= 1
    bare = filled.search(items[13].vector, 1, with_metadata=False).hits[0][0]
    assert (bare.id, bare.label, bare.metadata) == (13, None, {})


def test_length_of_a_query_does_not_matter(filled: Store, items: list[Item]) -> None:
    a, b = (filled.search(scale * items[0].vector, 5, exact=True).hits[0] for scale in (1e-6, 1e6))
    assert [hit.id for hit in a] == [hit.id for hit in b]


def test_least_similarity(filled: Store, items: list[Item]) -> None:
    every = filled.search(items[0].vector, 200, exact=True).hits[0]
    some = filled.search(items[0].vector, 200, exact=True, min_similarity=0.2).hits[0]
    assert some == [hit for hit in every if hit.similarity >= 0.2]
    assert 1 <= len(some) < 200


def test_excluded_ids_make_room_for_others(filled: Store, items: list[Item]) -> None:
    every = filled.search(items[0].vector, 8, exact=True).hits[0]
    out = {every[0].id, every[3].id, "nobody"}
    hits = filled.search(items[0].vector, 6, exact=True, exclude=out).hits[0]
    assert hits == [hit for hit in every if hit.id not in out][:6]
    assert filled.search(items[0].vector, 9, exclude=[item.id for item in items]).hits == [[]]


def test_an_empty_store_finds_nothing(store: Store, vectors: np.ndarray) -> None:
    result = store.search(vectors[:3], 5)
    assert result.hits == [[], [], []]
    assert result.plan.strategy == "empty"
    assert store.search(vectors[:3], 5, where={"label": "x"}, group_by="label").hits == [[], [], []]
    assert list(store.scan()) == []


UNUSABLE: list[tuple[Any, type[Exception]]] = [
    (np.zeros(16), StoreError),
    (np.full(16, np.nan), StoreError),
    (np.full(16, -np.inf), StoreError),
    (np.ones(15), DimensionMismatch),
    (np.ones((2, 17)), DimensionMismatch),
    (np.ones((1, 1, 16)), StoreError),
    (np.ones((16, 0)), StoreError),
    ("text", StoreError),
    ([[1.0] * 16, [1.0] * 15], DimensionMismatch),
]


def test_unusable_queries_are_refused(filled: Store) -> None:
    for query, error in UNUSABLE:
        with pytest.raises(error):
            filled.search(query)


def test_k_is_at_least_one(filled: Store, vectors: np.ndarray) -> None:
    with pytest.raises(StoreError, match="k is 0"):
        filled.search(vectors[0], 0)


def test_effort_has_limits(filled: Store, vectors: np.ndarray) -> None:
    for effort in (0, 65_537):
        with pytest.raises(StoreError, match=f"effort is {effort}"):
            filled.search(vectors[0], effort=effort)


def test_a_query_is_a_value_a_number_or_keywords(filled: Store, vectors: np.ndarray) -> None:
    query = SearchQuery(3, where={"id": {"ne": 1}}, exclude=(5,), exact=True)
    hits = filled.search(vectors[:2], query).hits
    assert [len(found) for found in hits] == [3, 3]
    assert filled.search(vectors[:2], 3, where=query.where, exclude=iter([5]), exact=True).hits == hits
    assert filled.search(vectors[:2], query, k=2).hits == [found[:2] for found in hits]
    assert len(filled.search(vectors[0]).hits[0]) == SearchQuery().k


def test_no_queries_no_hits(filled: Store) -> None:
    assert filled.search(np.empty((0, 16), np.float32)).hits == []


def test_the_plan_says_what_was_done(filled: Store, vectors: np.ndarray) -> None:
    """How many items could be hits is said where the engine tells it; what is said is right."""
    plan = filled.search(vectors[0], exact=True).plan
    assert (plan.strategy, plan.index) == ("exact", filled.stats().index)
    assert plan.candidates in (None, 200)
    plan = filled.search(vectors[0], where={"id": {"in": [1, 3]}}, exact=True).plan
    assert plan.strategy == "exact_subset"
    assert plan.candidates in (None, 2)
    assert plan.selectivity in (None, 0.01)
    plan = filled.search(vectors[0], where={"label": "nobody's"}).plan
    assert (plan.strategy, plan.candidates) == ("empty", 0)


def test_a_selective_filter_finds_all_that_pass(store: Store) -> None:
    """Also among items for which the engine has no index of its own yet, or one that looks at few of them."""
    vectors = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    store.upsert(Item(n, vector, metadata={"bucket": n % 1000}) for n, vector in enumerate(vectors))
    result = store.search(vectors[:20], 10, where={"metadata.bucket": 7})
    assert [{hit.id for hit in hits} for hits in result.hits] == [{7, 1007, 2007, 3007}] * 20


def test_a_flush_brings_the_index_up_to_date(store: Store) -> None:
    vectors = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    store.upsert(Item(n, vector) for n, vector in enumerate(vectors))
    store.flush()
    queries = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    found, right = (store.search(queries, 10, exact=exact).hits for exact in (False, True))
    common = [len({hit.id for hit in a} & {hit.id for hit in b}) for a, b in zip(found, right, strict=True)]
    assert sum(common) / 500 >= 0.9


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
