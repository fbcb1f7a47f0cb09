"""All that a search reads is of one version, whatever is written meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.store import query, version
from serve.store.collection import FaissStore
from serve.store.database import Tuning
from serve.store.types import Item
from serve.store.version import FilterCache


@pytest.fixture(params=["memtable", "segment", "edited segment"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FaissStore:
    with FaissStore.open(tmp_path / "store", dim=4, tuning=Tuning(build_threads=1)) as store:
        store.upsert(Item(n, np.eye(4)[n % 4] + 0.1, "cat") for n in range(8))
        if request.param != "memtable":
            store.flush()
        if request.param == "edited segment":
            store.update(0, {"metadata": {"seen": 1}})
        yield store


def after_first_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, then: Callable[[], None]
) -> None:
    real = getattr(owner, name)
    todo = [then]

    def call(*given: Any, **options: Any) -> Any:
        result = real(*given, **options)
        if todo:
            todo.pop()()
        return result

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_hit_has_the_label_that_passed_the_filter(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    searched = FaissStore.open(store.place.parents[1], read_only=True) if read_only else store
    after_first_call(monkeypatch, FilterCache, "passing", lambda: store.update(0, {"label": "dog"}))
    hits = searched.search(np.eye(4)[0], 8, where={"label": "cat"}).hits[0]
    assert {hit.label for hit in hits} == {"cat"}
    assert len({hit.id for hit in hits}) == len(hits) >= 7
    if read_only:
        searched.close()


def test_a_search_at_an_earlier_version_leaves_no_mask_behind(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filters that grouping makes are asked for after the first one, here with an edit in between."""
    store.upsert([Item(8, np.eye(4)[0], "owl"), Item(9, np.eye(4)[1], "cat")])
    where = {"label": {"in": ["cat", "dog", "owl"]}}
    after_first_call(monkeypatch, FilterCache, "passing", lambda: store.update(0, {"label": "dog"}))
    for _ in range(2):
        hits = store.search(np.eye(4)[2], 3, where=where, group_by="label").hits[0]
    assert {hit.label for hit in hits} == {"cat", "dog", "owl"}


def test_an_excluded_item_stays_out_though_it_is_replaced(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = query.row_ids_of
    todo = [lambda: store.upsert([Item(0, np.eye(4)[0], "cat")])]

    def row_ids_of(*given: Any) -> Any:
        if todo:
            todo.pop()()
        return real(*given)

    monkeypatch.setattr(query, "row_ids_of", row_ids_of)
    hits = store.search(np.eye(4)[0], 8, exclude=[0]).hits[0]
    assert sorted(hit.id for hit in hits) == list(range(1, 8))


def test_the_filter_cache_counts_and_bounds_its_memory(
    store: FaissStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "_MOST_BYTES", 100)
    cache = store._current.filters
    for number in range(20):
        found = store.search(np.eye(4)[0], where={"id": {"lt": number}}).hits[0]
        assert len(found) == min(number, 8)
        kept = list(cache._entries.values())
        assert cache._bytes == sum(
            entry.row_ids.nbytes + sum(rows.nbytes for rows in entry.selections.values()) for entry in kept
        )
        assert cache._bytes <= 100
    assert 0 < len(cache._entries) < 20
    store.update(1, {"label": "dog"})
    assert cache._bytes == 0
