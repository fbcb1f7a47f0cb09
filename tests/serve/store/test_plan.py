"""FaissStore says how many items could be hits."""

import numpy as np

from serve.store.types import Item, SearchPlan, Store


def test_the_plan_counts_candidates(store: Store, items: list[Item], vectors: np.ndarray) -> None:
    store.upsert(items)
    assert store.search(vectors[0], exact=True).plan == SearchPlan("exact", 200, 1.0, store.stats().index)
    plan = store.search(vectors[0], where={"id": {"in": [1, 3]}}).plan
    assert (plan.strategy, plan.candidates, plan.selectivity) == ("exact_subset", 2, 0.01)
