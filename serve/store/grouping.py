"""Hits of different labels."""

from __future__ import annotations

from collections.abc import Callable

from serve.store.protocol import Hit, ItemId, SearchQuery


def best_of_each_label(
    hits: list[Hit], query: SearchQuery, further: Callable[[list[str], list[ItemId]], list[Hit]]
) -> list[Hit]:
    """The best hit of each label, `k` in all; items without one each stand alone.

    Each round asks for the nearest items outside the labels found so far, so it brings at least one new
    label; its best of each label is the best of all, because earlier rounds had none of them.

    Args:
        hits: The `k` best hits of one vector, with their labels.
        query: What is asked for.
        further: The `k` best hits that have none of these labels and none of these ids.
    """
    best: list[Hit] = []
    labels: set[str] = set()
    while True:
        for hit in hits:
            if hit.label is None or hit.label not in labels:
                best.append(hit)
            if hit.label is not None:
                labels.add(hit.label)
        if len(hits) < query.k or len(best) >= query.k:
            kept = best[: query.k]
            return kept if query.with_metadata else [Hit(hit.id, hit.similarity) for hit in kept]
        hits = further(sorted(labels), [hit.id for hit in best if hit.label is None])
